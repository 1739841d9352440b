"""Shapes, first edition: the 64×64 pictures that Shapes GLIDE draws and its noise-aware CLIP reads."""
