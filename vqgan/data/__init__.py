"""From files to batches: sources, decode, transforms, sampler, loader; augment on the device; check before a run."""
