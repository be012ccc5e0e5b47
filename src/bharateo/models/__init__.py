"""Models: patches and masks, the transformer, the two autoencoders and their heads."""
