"""Evaluation: baselines, scores with intervals, and reconstructions to look at."""
