"""Explorer: static pages: the ground of a run, to look through and label; points, to answer."""
