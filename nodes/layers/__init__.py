"""A text or a learned token for each cross-attention layer (P+ and XTI, Voynov et al., arXiv 2303.09522).

For other families: `read_in_run(options, conds)` makes a model that they evaluate in a sampling read the layer prompts
of its conditionings, as the main model does.
"""

from . import per_block, xti_files, xti_info, xti_mix, xti_photos, xti_prompt, xti_train
from .cross_attention import read_in_run

__all__ = ["NODES", "read_in_run"]
NODES = [
    *per_block.NODES,
    *xti_prompt.NODES,
    *xti_files.NODES,
    *xti_mix.NODES,
    *xti_info.NODES,
    *xti_photos.NODES,
    *xti_train.NODES,
]
