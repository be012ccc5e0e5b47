"""Training: batches from a dataset, the loop, checkpoints."""
