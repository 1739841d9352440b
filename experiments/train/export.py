"""Writes `shapes/weights/` from finished and unfinished runs; each file says how many samples its weights saw. Run:
python dev.py train export

`--checkpoint` writes `checkpoint/` instead: fp16 weights that travel with the repository, so that the training goes on
elsewhere. The main model's EMA weights stand for its raw ones too.

All but the main model, the VAE and the text encoder are kept in 8 bits per weight with one scale per row, or Shapes
would not fit into its 40 MB.

The VAE is exported so that its latents have mean 0 and SD1.5's scale per channel (folded into its 1×1 convolutions),
because that is the space the diffusion models were trained in: `ShapesLatent` is then SD1.5's latent format unchanged.
"""

import argparse
import json
import shutil

import safetensors.torch
import torch

from guidance_lab.experiments.data import pictures
from guidance_lab.experiments.galip_networks import DIMS, networks
from guidance_lab.experiments.latents import Latents
from guidance_lab.experiments.train import captioner as train_captioner
from guidance_lab.experiments.train.diffusion import MAIN, SMALL, untrained
from guidance_lab.experiments.training import CHECKPOINT, RUNS, kept, seen, trained, write_weights
from guidance_lab.shapes.models import LATENT, ShapesLatent
from guidance_lab.shapes.shipped import WEIGHTS

# Run: the parts of it that travel; of a run with one part the names are as in the network, else "part:name".
TRAVEL = {
    "vae": ("model",), "decoder": ("model",), "text": ("model",), "main": ("average",), "small": ("average",),
    "clip": ("model", "projection", "temperature"), "noised_clip": ("model",), "captioner": ("model",),
    "galip": ("average",),
}  # fmt: skip
INTERIM = ("small", "captioner", "galip")  # what Shapes Demo Models cannot be made without


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


def preview_factors(latents: Latents) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(factors [4, 3], bias [3], R² [3]) of the linear preview: least squares from normalized latents to pictures in
    -1..1, averaged over the 8×8 pixels of each cell.
    """
    z = latents.chunk(0).float().permute(0, 2, 3, 1).reshape(-1, 4)
    rows = torch.from_numpy(pictures(0).copy()).view(-1, LATENT, 8, LATENT, 8, 3)
    wanted = rows.float().mean((2, 4)).reshape(-1, 3) / 127.5 - 1
    ones = torch.cat([z, torch.ones(len(z), 1)], 1)
    found = torch.linalg.lstsq(ones, wanted).solution
    left = (ones @ found - wanted).square().sum(0) / (wanted - wanted.mean(0)).square().sum(0)
    return found[:4], found[4], 1 - left


def write(name: str, sd: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    WEIGHTS.mkdir(exist_ok=True)
    halved = {k: (v.to(torch.float16) if v.is_floating_point() else v).contiguous() for k, v in sd.items()}
    path = WEIGHTS / f"{name}.safetensors"
    safetensors.torch.save_file(halved, path, metadata)
    path.chmod(0o644)
    size = f"{sum(v.numel() for v in halved.values()) / 1e6:.2f} M parameters, {path.stat().st_size / 1e6:.1f} MB"
    print(f"{name}: {size}, {(metadata or {}).get('samples', '?')} samples")


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


def averaged(name: str) -> dict[str, torch.Tensor]:
    """The EMA weights of a run."""
    return {key.removeprefix("module."): value for key, value in trained(name, "average").items()}


def write_vae() -> None:
    latents = Latents("cpu")
    fold_latent_scale(latents.vae, latents.mean.flatten(), latents.std.flatten(), ShapesLatent().scale_factor)
    write("vae", latents.vae.state_dict(), {"samples": str(seen("vae") + seen("decoder"))})


def write_text() -> None:
    write("text", trained("text"), {"samples": str(seen("text"))})


def write_main() -> None:
    write("main", averaged("main"), {"unet": json.dumps(MAIN), "samples": str(seen("main"))})


def write_early(mark: int | None = None) -> None:
    """The early guide, in 8 bits: the main run's snapshot at `mark` samples, or the last one before its middle."""
    folder, half = RUNS / "main", seen("main") / 2
    marks = sorted(int(path.stem.removeprefix("early-")) for path in folder.glob("early-*.safetensors"))
    mark = mark or max([m for m in marks if m <= half] or marks[:1], default=None)
    weights, samples = kept(f"early-{mark}", folder) or (averaged("main"), seen("main"))
    write("early", in_8_bits(weights), {"unet": json.dumps(MAIN), "samples": str(samples)})


def write_small() -> None:
    write("small", in_8_bits(averaged("small")), {"unet": json.dumps(SMALL), "samples": str(seen("small"))})


def clip_weights(run: str) -> dict[str, torch.Tensor]:
    """Image tower and text projection of a CLIP's run under open_clip's names; its text tower is the text encoder."""
    sd = {f"visual.{key}": value for key, value in trained(run).items()}
    # The end token's state was trained through the encoder's own projection; the CLIP's comes after it.
    own = trained("text")["text_projection.weight"]
    sd["text_projection"] = (trained(run, "projection")["weight"] @ own).T
    sd["logit_scale"] = trained(run, "temperature")["logit_scale"]
    return sd


def write_clip() -> None:
    """The CLIP, in 8 bits."""
    write("clip", in_8_bits(clip_weights("clip")), {"samples": str(seen("clip"))})


def write_noised_clip() -> None:
    """Both towers of the noise-aware CLIP in 8 bits, under `image.` and `text.` and the names of GLIDE's files."""
    write("noised_clip", in_8_bits(in_glides_names(trained("noised_clip"))), {"samples": str(seen("noised_clip"))})


def in_glides_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights of a `NoisedCLIP` under the names of GLIDE's files."""
    sd = {}
    for key, value in state.items():
        key = key.replace("_encoder.", ".", 1).removesuffix(".bias") + (".b" if key.endswith(".bias") else "")
        if key.endswith(".weight"):
            key = key.removesuffix("weight") + ("w" if value.ndim > 1 else "g")
        sd[key] = value
    return sd


def write_captioner() -> None:
    write("captioner", in_8_bits(trained("captioner")), {"samples": str(seen("captioner"))})


def write_galip(weights: dict[str, torch.Tensor] | None = None) -> None:
    """The generator in 8 bits, without the CLIP image tower inside: that is the CLIP's file."""
    sd = averaged("galip") if weights is None else weights
    sd = {key: value for key, value in sd.items() if not key.startswith("mapping.CLIP_ViT.")}
    write("galip", in_8_bits(sd), {"sizes": ",".join(map(str, DIMS.sizes)), "samples": str(seen("galip"))})


def write_untrained(name: str) -> None:
    """Random weights in the place of a run that is still to come."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if name == "small":
            sd = untrained(SMALL)[1].state_dict()
            write("small", in_8_bits(sd), {"unet": json.dumps(SMALL), "samples": "0"})
        elif name == "captioner":
            write("captioner", in_8_bits(train_captioner.untrained().state_dict()), {"samples": "0"})
        else:
            write_galip(networks()[0].state_dict())


WRITERS = {
    "vae": write_vae, "text": write_text, "main": write_main, "early": write_early, "small": write_small,
    "clip": write_clip, "noised_clip": write_noised_clip, "captioner": write_captioner, "galip": write_galip,
}  # fmt: skip


def write_checkpoint() -> None:
    for name, parts in TRAVEL.items():
        if not (RUNS / name / "last.pt").exists():
            continue
        if name == "vae" and (RUNS / "decoder" / "last.pt").exists():
            continue  # its encoder is in the decoder's file
        sd = {}
        for part in parts:
            prefix = f"{part}:" if len(parts) > 1 else ""
            sd |= {prefix + key.removeprefix("module."): value for key, value in trained(name, part).items()}
        size = {"main": MAIN, "small": SMALL}.get(name)
        write_weights(CHECKPOINT / f"{name}.safetensors", sd, seen(name), unet=json.dumps(size) if size else "")
        print(f"{name}: {seen(name)} samples, {sum(map(torch.numel, sd.values())) / 1e6:.2f} M weights")
    log = RUNS / "main" / "log.jsonl"
    if log.exists():
        shutil.copy(log, CHECKPOINT / "log.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(*WRITERS, "preview"), help="these, or the preview's numbers")
    parser.add_argument("--early", type=int, help="samples of the main run's snapshot to ship as the early guide")
    parser.add_argument(
        "--interim", action="store_true", help=f"untrained weights for {', '.join(INTERIM)} where there is no run"
    )
    parser.add_argument("--checkpoint", action="store_true", help="write checkpoint/ instead")
    args = parser.parse_args()
    if args.checkpoint:
        write_checkpoint()
        return
    for name in args.only or WRITERS:
        if name == "preview":
            for label, value in zip(("factors", "bias", "R²"), preview_factors(Latents("cpu")), strict=True):
                print(label, [[round(x, 4) for x in row] for row in value.view(-1, 3).tolist()])
            continue
        try:
            write_early(args.early) if name == "early" else WRITERS[name]()
        except FileNotFoundError as missing:
            if args.interim and name in INTERIM:
                write_untrained(name)
            else:
                print(f"{name}: left as it is. {missing}")


if __name__ == "__main__":
    main()
