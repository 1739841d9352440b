"""Shapes, second edition: 128×128 pictures with light and shadow, and a network in which every level matters. See
README.md."""
