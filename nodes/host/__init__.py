"""The only package that touches host internals: the life of a guidance inside a ComfyUI sampling run."""
