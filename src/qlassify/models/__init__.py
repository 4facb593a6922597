"""A pretrained model as a backbone, and a backbone with pooling and a head as a classifier."""
