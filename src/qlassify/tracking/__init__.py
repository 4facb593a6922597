"""Tracking: a run's curves in TensorBoard, MLflow or Weights & Biases, through their own packages."""
