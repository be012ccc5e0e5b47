"""Composites: a place and some dates as one cloud-free raster, from the scenes of a catalogue."""
