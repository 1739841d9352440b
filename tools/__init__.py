"""Pieces of dev.py; none of this is part of the node pack."""
