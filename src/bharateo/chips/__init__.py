"""Chips: where they lie (``layouts``), are cut (``build``), stored and opened (``store``)."""
