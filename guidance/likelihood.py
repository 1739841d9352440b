"""How likely a text is to a captioner that sees a picture: the score of a captioner as a matching model.

A captioner is a language model that looks at a picture x, and writes a text c = (c_1 ... c_T) word by word. Read the
other way round (teacher forcing: every word is scored after the true ones before it) it says how well a given text fits
the picture:

    log p(c | x) = sum_t log p(c_t | c_1 ... c_(t-1), x)

It is minus the loss that captioners are trained with. Unlike the cosine of a CLIP it is read word by word, so it knows
which colour belongs to which thing and what is left of what.
"""

import torch
import torch.nn.functional as F

TOKEN, CAPTION = "token", "caption"


def log_likelihood(logits: torch.Tensor, tokens: torch.Tensor, counted: torch.Tensor, per: str = TOKEN) -> torch.Tensor:
    """log p(text | picture) of each row, [N], in float32 or wider.

        TOKEN    (1 / sum_t m_t) sum_t m_t log softmax(l_t)[c_t]      the mean over the tokens
        CAPTION  sum_t m_t log softmax(l_t)[c_t]                      the whole text

    `logits` l: [N, T, V], where l_t is what the captioner said before it was shown c_t. `tokens` c: [N, T], indices
    below V. `counted` m: [N, T], true where a token belongs to the text; what is false (padding, the first token) has
    neither a value nor a gradient.
    ValueError when the shapes differ, a row counts no token, or `per` is unknown.
    """
    if logits.shape[:2] != tokens.shape or tokens.shape != counted.shape:
        raise ValueError(
            f"Logits {list(logits.shape)}, tokens {list(tokens.shape)} and mask {list(counted.shape)} do not belong "
            "together: give [N, T, V], [N, T] and [N, T]."
        )
    if per not in (TOKEN, CAPTION):
        raise ValueError(f"Unknown unit '{per}' of a likelihood: use {TOKEN} or {CAPTION}.")
    counted = counted.bool()
    lengths = counted.sum(1)
    if not (lengths > 0).all():
        raise ValueError("A text without a single token has no likelihood: write at least one word.")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    # Before the softmax: a position that is not counted may hold anything, infinities too.
    wide = torch.where(counted[..., None], wide, 0)
    said = F.log_softmax(wide, dim=-1).gather(-1, torch.where(counted, tokens, 0)[..., None])[..., 0]
    total = torch.where(counted, said, 0).sum(1)
    return total if per == CAPTION else total / lengths
