"""Chips: where they lie (``plan``), how they are cut (``build``), stored and opened (``store``)."""
