"""What state a run is in, told from its records: for `vqgan doctor`, and for the watch of the training loop."""
