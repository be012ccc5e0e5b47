"""Embedding: what a frozen encoder says of every patch of a dataset or of a raster of any size."""
