"""Shapes: a tiny world with ground truth, and the models that were trained on it."""
