"""Charts as pictures, drawn with Pillow: what the plots of traces, training runs and learned tokens share."""
