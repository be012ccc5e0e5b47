"""Mapping: a map of a person's ground, an answer from their points, and places alike."""
