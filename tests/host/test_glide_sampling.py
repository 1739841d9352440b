"""GLIDE through ComfyUI's own sampling, against the trajectories of the official code."""

import pytest
import torch
from glide_host import load, prompts, sample
from glide_tools import facts, relative, tensors

GOLDEN, RUNS = tensors(), facts()["sampling"]
LIMIT = 1e-4


def as_image(x):
    """[-1, 1] NCHW → IMAGE."""
    return (x.movedim(1, -1) + 1) / 2


def fill_of(known):
    """A recorded mask (1 = known) → MASK (1 = to fill)."""
    return 1 - known[:, 0]


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("traj.") and not RUNS[name]["cond_fn"]])
def test_recorded_trajectories(name, run_node):
    run = RUNS[name]
    model = load(run["variant"])[0]
    positive, negative = prompts(run["variant"], run)
    latent = {"samples": torch.zeros(1, 3, 16, 16)}
    if run["variant"].startswith("upsample"):
        image = as_image(GOLDEN["traj.upsample.low_res_raw"])
        positive, latent = upsample(run_node, positive, image, temperature=run["temp"])
        negative = positive  # no CFG
    if run["variant"].endswith("inpaint"):
        picture, mask = as_image(GOLDEN["traj.inpaint.image"]), fill_of(GOLDEN["traj.inpaint.mask"])
        positive, negative, latent, used = run_node(
            "GuidanceLab_GLIDEInpaint",
            positive=positive,
            negative=negative,
            image=picture,
            mask=mask,
            width=16,
            height=16,
        )
        assert torch.equal(used, mask)
    out, kept = sample(
        model, positive, negative, latent, GOLDEN[f"{name}.noise_T"], run["spec"], run["cfg"] or 1.0, run["method"],
        run["eta"], GOLDEN.get(f"{name}.noise"),
    )  # fmt: skip
    steps = len(run["timesteps"])
    samples = [kept[step + 1][1] if step + 1 < steps else out for step in run["kept_steps"]]
    assert relative(torch.cat(samples), GOLDEN[f"{name}.samples"]) < LIMIT
    assert relative(kept[run["xstart_step"]][0], GOLDEN[f"{name}.pred_xstart"]) < LIMIT


def upsample(run_node, conditioning, image, **options):
    """GLIDE Upsample to 16 pixels: the node's least is 32, which the small recorded network is not."""
    positive, _ = run_node("GuidanceLab_GLIDEUpsample", conditioning=conditioning, image=image, **options)
    return positive, {"samples": torch.zeros(len(image), 3, 16, 16)}
