"""The shipped noise-aware CLIP of Shapes, read as GLIDE's files are: it tells things and colours in noise that its
timestep names.
"""

import numpy as np
import pytest
import torch

from guidance_lab.experiments.train.noised_clip import lengths, noised
from guidance_lab.guidance.glide import cosine_alpha_bars
from guidance_lab.guidance.noised_clip import load
from guidance_lab.shapes import shipped
from guidance_lab.shapes.clip import tokens
from guidance_lab.shapes.render import render
from guidance_lab.shapes.world import OBJECTS, parse


@pytest.mark.parametrize("timestep", [0, 300, 600])
def test_it_tells_things_in_noise(timestep):
    captions = [f"a {colour} {name} on white" for name in OBJECTS for colour in ("red", "green", "blue")]
    pictures = torch.stack(
        [torch.tensor(render(parse(caption))).permute(2, 0, 1).float() / 127.5 - 1 for caption in captions]
    )
    clip, ids = load(*shipped.noised_clip_files()), tokens(captions)
    with torch.no_grad():
        images = clip.image(noised(pictures, cosine_alpha_bars()[timestep]), torch.full((len(pictures),), timestep))
        texts = clip.text(ids, lengths(ids))
    # Chance is one in eighteen.
    assert ((images @ texts.T).argmax(1) == torch.arange(len(captions))).float().mean() > 0.6
    assert np.allclose(images.norm(dim=-1), 1.0, atol=1e-5)
