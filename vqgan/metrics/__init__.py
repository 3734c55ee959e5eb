"""Figures of merit: of images (`image`) and of the codebook (`codebook`)."""
