"""Files of the scorers that example workflows need, with random weights. No ComfyUI, and nothing of the pack."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from unit.glide_golden import facts, state_dict

ARCHITECTURE = "ViT-S-32-alt"  # the smallest that open_clip publishes a configuration of


def randomized(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The module in eval mode with all weights random, so that none is zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in module.parameters():
            spread = 0.3 if value.ndim < 2 else value[0].numel() ** -0.5
            value.copy_(torch.randn(value.shape, generator=generator) * spread + (value.ndim == 1))
    return module.requires_grad_(False).eval()


def write(folder: Path, name: str) -> Path:
    """The file `name` of models/ (such as classifiers/NAME/config.json) below `folder`, with all that belongs to it;
    once.
    """
    path = folder / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        if path.name in ("clip_image_enc.pt", "clip_text_enc.pt"):
            write_glide(path, path.name.split("_")[1])
        elif name.startswith("clip_vision/"):
            write_clip(path)
        elif name.startswith("aesthetic/"):
            write_head(path)
        elif name.startswith("classifiers/"):
            write_classifier(path.parent)
        else:
            write_blip(path.parent, matching="itm" in path.parent.name)
    return path


def write_clip(path: Path) -> None:
    """An open_clip file of 28 M parameters in fp16."""
    import open_clip

    with torch.device("meta"):  # what open_clip would fill it with is not wanted
        clip = open_clip.CLIP(**open_clip.get_model_config(ARCHITECTURE))
    clip = randomized(clip.to_empty(device="cpu")).half()
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, path)


def write_head(path: Path, width: int = 256) -> None:
    """A linear aesthetic head for embeddings of that width, which ARCHITECTURE has."""
    generator = torch.Generator().manual_seed(4)
    torch.save({"weight": torch.randn(1, width, generator=generator), "bias": torch.zeros(1)}, path)


def write_classifier(folder: Path, count: int = 1000) -> None:
    """An ImageNet classifier of timm as it is published: a folder with config.json and weights."""
    import timm

    options = {"img_size": 32, "depth": 2}
    network = randomized(timm.create_model("test_vit", num_classes=count, **options))
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "test_vit",
        "num_classes": count,
        "model_args": options,
        "pretrained_cfg": {"input_size": [3, 32, 32]},
    }
    (folder / "config.json").write_text(json.dumps(config))


def write_blip(folder: Path, matching: bool) -> None:
    """A BLIP with its matching head, or with its captioning head."""
    import tiny_captioner
    import transformers

    kind = transformers.BlipForImageTextRetrieval if matching else transformers.BlipForConditionalGeneration
    tiny_captioner.blip(folder, network_class=kind)
    transformers.BlipImageProcessor.from_pretrained(folder).save_pretrained(folder)  # under its usual name


def small_shapes(kind: str) -> dict[str, list[int]]:
    """State-dict shapes of GLIDE's image or text encoder, 64 wide, one block, 16 pixels."""
    named = {
        "w_t": [1000, 64],
        "patch_proj": [64, 3, 4, 4],
        "w_voc": [49500, 64],
        "w_pos": [17 if kind == "image" else 77, 64],
    }
    small = {768: 64, 512: 64, 3072: 256, 2048: 256}
    recorded = facts()["state_dict"][f"{kind}_encoder"].items()
    return {
        key: named.get(key.split(".")[-1]) or [small[n] for n in shape]
        for key, shape in recorded
        if ".block_" not in key or ".block_0." in key
    }


def write_glide(path: Path, kind: str) -> None:
    """GLIDE's image or text encoder as its files are: a plain PyTorch state dict."""
    torch.save(state_dict(kind, shapes=small_shapes(kind)), path)
