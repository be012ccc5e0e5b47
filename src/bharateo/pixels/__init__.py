"""Rasters, masks, HTTP and COG: pixels wherever they lie; knows no sensors."""
