"""Verbs: each one function, which is its Python API, its command line and its reference page."""
