"""GLIDE on Shapes: trains small base, inpainting and upsampling networks, which do not ship yet."""
