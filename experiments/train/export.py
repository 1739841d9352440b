"""Writes `shapes/weights/` from finished runs: fp16 safetensors, each with what it needs to be rebuilt. Run: python
dev.py train export

All but the main model, the VAE and the text encoder are kept in 8 bits per weight with one scale per row, or Shapes
would not fit into its 40 MB.

The VAE is exported so that its latents have mean 0 and SD1.5's scale per channel (folded into its 1×1 convolutions),
because that is the space the diffusion models were trained in: `ShapesLatent` is then SD1.5's latent format unchanged.
"""

import argparse
import json

import safetensors.torch
import torch

from guidance_lab.experiments.galip_networks import DIMS
from guidance_lab.experiments.train.diffusion import MAIN, SMALL
from guidance_lab.experiments.train.galip import averaged, clip_snapshot, snapshots
from guidance_lab.experiments.training import RUNS
from guidance_lab.shapes.models import ShapesLatent, autoencoder
from guidance_lab.shapes.shipped import WEIGHTS


def fold_latent_scale(vae, mean: torch.Tensor, std: torch.Tensor, scale: float) -> None:
    """Makes encoded means (z - mean)/(std·scale), and decoding its exact inverse. mean, std: [4]; scale: the latent
    format's factor.
    """
    with torch.no_grad():
        gain = torch.cat([1 / (std * scale), torch.ones(4)])
        shift = torch.cat(
            [-mean / (std * scale), -2 * torch.log(std * scale)]
        )  # the log-variances shift with the means' scale
        vae.quant_conv.weight.mul_(gain.view(-1, 1, 1, 1))
        vae.quant_conv.bias.mul_(gain).add_(shift)
        weight = vae.post_quant_conv.weight.flatten(1)
        vae.post_quant_conv.bias.add_(weight @ mean)
        vae.post_quant_conv.weight.mul_((std * scale).view(1, -1, 1, 1))


def write(name: str, sd: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    kept = {k: (v.to(torch.float16) if v.is_floating_point() else v).contiguous() for k, v in sd.items()}
    path = WEIGHTS / f"{name}.safetensors"
    safetensors.torch.save_file(kept, path, metadata)
    path.chmod(0o644)
    print(f"{name}: {sum(v.numel() for v in kept.values()) / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB")


def in_8_bits(sd: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Matrices and kernels as int8 rows with a scale each, under `NAME` and `NAME.scale`; `shapes.shipped` takes them
    back.
    """
    small = {}
    for key, value in sd.items():
        if value.ndim < 2:
            small[key] = value
            continue
        scale = (value.flatten(1).abs().amax(1) / 127).clamp(min=1e-8).to(torch.float16)
        shape = (-1, *[1] * (value.ndim - 1))
        small[key] = (value / scale.float().view(shape)).round().clamp(-127, 127).to(torch.int8)
        small[f"{key}.scale"] = scale
    return small


def write_clip() -> None:
    """The image tower and the text projection of the CLIP, in 8 bits; its text tower is the text encoder's file."""
    state = torch.load(RUNS / "clip" / "last.pt", weights_only=True)
    text = torch.load(RUNS / "text" / "last.pt", weights_only=True)["model"]
    sd = {f"visual.{key}": value for key, value in state["visual"].items()}
    # The end token's state was trained through the encoder's own projection; the CLIP's comes after it.
    sd["text_projection"] = (state["projection"]["weight"] @ text["text_projection.weight"]).T
    sd["logit_scale"] = state["temperature"]["logit_scale"]
    write("clip", in_8_bits(sd))


def write_noised_clip() -> None:
    """Both towers of the noise-aware CLIP in 8 bits, under `image.` and `text.` and the names of GLIDE's files."""
    state = torch.load(RUNS / "noised_clip" / "last.pt", weights_only=True)["model"]
    sd = {}
    for key, value in state.items():
        key = key.replace("_encoder.", ".", 1).removesuffix(".bias") + (".b" if key.endswith(".bias") else "")
        if key.endswith(".weight"):
            key = key.removesuffix("weight") + ("w" if value.ndim > 1 else "g")
        sd[key] = value
    write("noised_clip", in_8_bits(sd))


def write_captioner() -> None:
    """The captioner in 8 bits."""
    write("captioner", in_8_bits(torch.load(RUNS / "captioner" / "last.pt", weights_only=True)["model"]))


def write_galip() -> None:
    """The generator in 8 bits, without the CLIP image tower inside: that is the CLIP's file."""
    if clip_snapshot()["step"] != torch.load(RUNS / "clip" / "last.pt", weights_only=True)["step"]:
        raise SystemExit(
            "The GALIP run began with an earlier state of the CLIP than the one that is shipped; train it again."
        )
    sd = averaged("galip", max(snapshots("galip"))).state_dict()
    sd = {key: value for key, value in sd.items() if not key.startswith("mapping.CLIP_ViT.")}
    write("galip", in_8_bits(sd), {"sizes": ",".join(map(str, DIMS.sizes)), "step": str(max(snapshots("galip")))})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--early", type=int, help="step of the main run's snapshot to ship as the early guide")
    parser.add_argument("--only", choices=("clip", "noised_clip", "captioner", "galip"), help="only this one")
    args = parser.parse_args()
    if args.only:
        {"clip": write_clip, "noised_clip": write_noised_clip, "captioner": write_captioner, "galip": write_galip}[
            args.only
        ]()
        return
    if args.early is None:
        parser.error("--early is needed to export the diffusion models")
    vae = autoencoder()
    vae.load_state_dict(torch.load(RUNS / "vae" / "last.pt", weights_only=True)["model"])
    measured = torch.load(RUNS / "latents.pt", weights_only=True)
    fold_latent_scale(vae, measured["mean"].flatten(), measured["std"].flatten(), ShapesLatent().scale_factor)
    write("vae", vae.state_dict())
    write("text", torch.load(RUNS / "text" / "last.pt", weights_only=True)["model"])
    for name, size, run in (("main", MAIN, "main"), ("small", SMALL, "small")):
        average = torch.load(RUNS / run / "last.pt", weights_only=True)["average"]
        sd = {k.removeprefix("module."): v for k, v in average.items()}
        write(name, sd if name == "main" else in_8_bits(sd), {"unet": json.dumps(size)})
    early = torch.load(RUNS / "main" / f"step{args.early}.pt", weights_only=True)
    write("early", in_8_bits(early), {"unet": json.dumps(MAIN)})
    write_clip()
    write_noised_clip()
    write_captioner()
    write_galip()


if __name__ == "__main__":
    main()
