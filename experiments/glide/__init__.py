"""GLIDE on Shapes: trains the small base, inpainting and upsampling networks that come with the pack."""
