"""From a classifier and encoded rows to trained parameters: loss, step, schedule, loop, checkpoints."""
