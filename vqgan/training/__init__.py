"""Training: the trainer and its loop, what lives in a run, checkpoints, signals, tracking, validation."""
