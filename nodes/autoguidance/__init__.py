"""Autoguidance (Karras et al., arXiv 2406.02507): a model guided by a weaker version of itself, and ways to make
one.
"""

from . import model_pair, weaker_version

NODES = [*model_pair.NODES, *weaker_version.NODES]
