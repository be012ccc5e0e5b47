"""Explorer: a static page of a run: an area with layers, patches alike, and a mask to paint."""
