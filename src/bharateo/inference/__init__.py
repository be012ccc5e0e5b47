"""Inference: a run on any dataset or raster: vectors, maps of classes, places alike."""
