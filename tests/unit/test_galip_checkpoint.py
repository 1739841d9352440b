"""Reading and writing generators: every layout, every size, and files that must be refused with one sentence."""

import os
import re
from pathlib import Path

import pytest
import torch
from galip_formula import formula_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from guidance_lab import galip

FIXTURES = Path(__file__).parent.parent / "fixtures/galip"
TINY = galip.Dims(
    nz=12,
    cond_dim=20,
    code_channels=8,
    code_hidden=4,
    bridge_blocks=2,
    clip_width=64,
    clip_layers=4,
    clip_patch=8,
    prompts=2,
    channels=((16, 16), (16, 16), (16, 8)),
    sizes=(8, 16, 224),
)
SMALL_SIZES = (8, 16, 28)


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return formula_state_dict(galip.Generator(TINY), "netG.")


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(1)
    return torch.randn(3, 12, generator=source), torch.randn(3, 20, generator=source)


@pytest.fixture(scope="module")
def image(tensors, batch) -> torch.Tensor:
    with torch.no_grad():
        return galip.load_generator(tensors)(*batch)


def official(tensors: dict) -> dict:
    """A training file of the official code, with the parts that we drop."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.Adam([weight])
    weight.sum().backward()
    optimizer.step()
    other = {"main.gamma": torch.zeros(1)}
    return {
        "model": {"netG": tensors, "netD": other, "netC": other},
        "optimizers": {"optimizer_G": optimizer.state_dict()},
        "epoch": 7,
    }


def parallel(tensors: dict) -> dict:
    return {"module." + key: value for key, value in tensors.items()}


LAYOUTS = {
    "bare": lambda t: t,
    "parallel": parallel,
    "netG": lambda t: {"netG": t, "netD": {}, "netC": {}},
    "netG parallel": lambda t: {"netG": parallel(t)},
    "model": lambda t: {"model": {"netG": t}},
    "official": official,
    "official parallel": lambda t: official(parallel(t)),
}


def refused(source, *words: str) -> str:
    """The message with which `source` is refused: one sentence that says what is wrong."""
    with pytest.raises(ValueError) as caught:
        galip.load_generator(source)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400
    for word in words:
        assert word in message
    return message


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_layouts(tmp_path, tensors, batch, image, layout, zipped):
    torch.save(LAYOUTS[layout](tensors), tmp_path / "state_epoch_007.pth", _use_new_zipfile_serialization=zipped)
    loaded = galip.load_generator(tmp_path / "state_epoch_007.pth")
    assert loaded.dims == TINY and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(*batch), image)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_state_dict_layouts(tensors, batch, image, layout):
    loaded = galip.load_generator(LAYOUTS[layout](tensors))
    with torch.no_grad():
        assert torch.equal(loaded(*batch), image)


def test_a_prefix_on_some_names_is_a_part_of_those_names(tensors):
    """Data-parallel training puts it on all. One name that happens to start so must not be renamed."""
    odd = {"module.extra": torch.zeros(1), **tensors}
    assert list(galip.checkpoint.select_generator(odd)) == list(odd)
    with pytest.raises(ValueError, match="do not belong to a GALIP generator, first 'module.extra'"):
        galip.load_generator(odd)


def test_mixed_precision_file(tmp_path, tensors):
    """Files trained on CUDA hold the CLIP matrices in fp16; all becomes one dtype."""
    mixed = {key: value.half() if "CLIP_ViT" in key and value.ndim > 1 else value for key, value in tensors.items()}
    torch.save(mixed, tmp_path / "mixed.pth")
    for dtype in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in galip.load_generator(tmp_path / "mixed.pth", dtype=dtype).parameters()} == {dtype}


def test_safetensors_round_trip(tmp_path, tensors, batch):
    path = tmp_path / "generator.safetensors"
    generator = galip.load_generator(tensors, sizes=SMALL_SIZES)
    galip.save_generator(generator, path, torch.float32, {"made_from": "pre_test.pth", "nz": "overruled"})
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "architecture": "GALIP",
            "ngf": "8",
            "nz": "12",
            "cond_dim": "20",
            "ch_size": "3",
            "sizes": "8,16,28",
            "made_from": "pre_test.pth",
        }
    again = galip.load_generator(path)
    assert again.dims.sizes == SMALL_SIZES
    with torch.no_grad():
        assert again(*batch).shape == (3, 3, 28, 28)
        assert torch.equal(again(*batch), generator(*batch))
    galip.save_generator(generator, path, torch.float16)
    assert all(
        torch.equal(value, tensors[key].half().float())
        for key, value in galip.load_generator(path).state_dict().items()
    )


@pytest.mark.parametrize("bias", [[1e5, 1e5, 1e5], [0.0, 1e5, 0.0]])
def test_save_refuses_what_fp16_cannot_hold(tmp_path, tensors, bias):
    generator = galip.load_generator({**tensors, "to_rgb.1.bias": torch.tensor(bias)})
    with pytest.raises(ValueError, match="to_rgb.1.bias.*float32"):
        galip.save_generator(generator, tmp_path / "x.safetensors", torch.float16)
    assert not list(tmp_path.iterdir())


def test_load_copies_and_leaves_random_state(tensors):
    before = torch.get_rng_state()
    generator = galip.load_generator(tensors)
    generator.fc_code.weight.data.zero_()
    assert tensors["fc_code.weight"].abs().max() > 0
    assert torch.equal(before, torch.get_rng_state())
    frozen = {name for name, parameter in generator.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name in tensors if "CLIP_ViT" in name}


def listed(file: str, prefix: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an official state dict."""
    lines = [
        line
        for line in (FIXTURES / file).read_text().splitlines()
        if line.startswith(prefix) and not line.startswith("#")
    ]
    rows = [line.removeprefix(prefix).split("\t") for line in lines]
    return {name: tuple(int(number) for number in re.findall(r"\d+", shape)) for name, shape in rows}


@pytest.mark.parametrize(
    "kind, file, prefix",
    [
        (galip.Generator, "netg_keys.txt", ""),
        (galip.NetD, "netd_netc_keys.txt", "netD\t"),
        (galip.NetC, "netd_netc_keys.txt", "netC\t"),
    ],
)
def test_official_names_and_shapes(kind, file, prefix):
    with torch.device("meta"):
        own = {key: tuple(value.shape) for key, value in kind().state_dict().items()}
    assert own == listed(file, prefix)
    if kind is galip.Generator:
        assert (
            galip.dims.infer_dims({key: torch.empty(shape, device="meta") for key, shape in own.items()})
            == galip.OFFICIAL
        )


@pytest.mark.parametrize(
    "change",
    [
        {"nz": 24},
        {"cond_dim": 33},
        {"image_channels": 1},
        {"prompts": 3},
        {"clip_layers": 5},
        {"grid": 4},
        {"clip_width": 128},
        {"code_channels": 12},
        {"code_hidden": 6},
        {"bridge_blocks": 1},
        {"channels": ((16, 16), (16, 4)), "sizes": (8, 224)},
    ],
)
def test_fork_sizes_are_inferred(change):
    dims = galip.Dims(**{**TINY.__dict__, **change})
    assert galip.load_generator(galip.Generator(dims).state_dict()).dims == dims


def without(tensors: dict, key: str) -> dict:
    return {name: value for name, value in tensors.items() if name != key}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: {}, ["no tensors"]),
        (lambda t: {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4)}, ["not a GALIP generator"]),
        (lambda t: without(t, "fc_code.weight"), ["fc_code.weight"]),
        (lambda t: without(t, "GBlocks.1.c2.bias"), ["missing", "GBlocks.1.c2.bias"]),
        (lambda t: {**t, "GBlocks.1.noise_weight": torch.zeros(1)}, ["do not belong", "GBlocks.1.noise_weight"]),
        (lambda t: {**t, "fc_code.weight": torch.zeros(3)}, ["fc_code.weight", "[3]"]),
        (
            lambda t: {**t, "mapping.conv.weight": torch.zeros(16, 63, 5, 5)},
            ["mapping.conv.weight", "[16, 63, 5, 5]", "[16, 64, 5, 5]"],
        ),
        (lambda t: {**t, "to_rgb.1.bias": torch.tensor([0.0, float("nan"), 0.0])}, ["to_rgb.1.bias", "not finite"]),
        (lambda t: {**t, "to_rgb.1.bias": torch.tensor([0.0, float("inf"), 0.0])}, ["to_rgb.1.bias", "not finite"]),
        (lambda t: {**t, "mapping.CLIP_ViT.positional_embedding": torch.zeros(257, 64)}, ["CLIP", "256"]),
        (lambda t: {**t, "mapping.CLIP_ViT.conv1.weight": torch.zeros(48, 3, 8, 8)}, ["CLIP width 48"]),
        (lambda t: {**t, "fc_code.bias": torch.zeros(392, dtype=torch.int64)}, ["fc_code.bias", "int64", "floats"]),
        (lambda t: {**t, "epoch": 3}, ["epoch"]),
        (lambda t: {"model": {"netD": {"main.gamma": torch.zeros(1)}}}, ["netD"]),
    ],
)
def test_wrong_contents_are_refused(tensors, change, words):
    refused(change(tensors), *words)


class Attack:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_code_in_a_file_is_never_run(tmp_path, tensors, zipped):
    torch.save(
        {"netG": tensors, "extra": Attack(tmp_path / "owned")},
        tmp_path / "bad.pth",
        _use_new_zipfile_serialization=zipped,
    )
    refused(tmp_path / "bad.pth", "bad.pth", "never run")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, tensors, suffix):
    path = tmp_path / ("broken" + suffix)
    (torch.save if suffix == ".pth" else save_file)(tensors, path)
    whole = path.read_bytes()
    for part in (
        whole[:-100],
        whole[: len(whole) // 2],
        whole[:20],
        b"",
        b"<!DOCTYPE html><html>quota exceeded</html>",
    ):
        path.write_bytes(part)
        refused(path, path.name, "damaged" if part else "empty")
    refused(tmp_path / ("absent" + suffix), "no such file")


def test_other_torch_files_are_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "ViT-B-32.pt"))
    refused(tmp_path / "ViT-B-32.pt", "ViT-B-32.pt", "TorchScript")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    refused(tmp_path / "list.pth", "list")


def test_old_torch_reads_no_pickle(tmp_path, tensors, monkeypatch):
    torch.save(tensors, tmp_path / "x.pth")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    refused(tmp_path / "x.pth", "2.6", "safetensors")


@pytest.mark.parametrize("sizes", ["8,16", "8,x,28", ""])
def test_wrong_metadata_is_refused(tmp_path, tensors, sizes):
    save_file(tensors, tmp_path / "x.safetensors", {"sizes": sizes})
    refused(tmp_path / "x.safetensors", "sizes")


def clip_file(generator: galip.Generator, names: tuple[str, str]) -> dict[str, torch.Tensor]:
    inside = generator.mapping.CLIP_ViT
    return dict(
        zip(names, (inside.class_embedding.detach().clone(), inside.positional_embedding.detach().clone()), strict=True)
    )


@pytest.mark.parametrize(
    "names",
    [
        ("visual.class_embedding", "visual.positional_embedding"),
        ("vision_model.embeddings.class_embedding", "vision_model.embeddings.position_embedding.weight"),
    ],
)
def test_clip_must_be_the_one_inside(tensors, names):
    generator = galip.load_generator(tensors)
    clip = clip_file(generator, names)
    galip.check_same_clip(clip, generator)
    galip.check_same_clip(
        {key: value.half() for key, value in clip.items()}, galip.load_generator(tensors, dtype=torch.bfloat16)
    )
    for name in names:
        for wrong in (clip[name].roll(1), clip[name].repeat_interleave(2, dim=-1)):
            with pytest.raises(ValueError, match="not the one inside.*clip-vit-base-patch32"):
                galip.check_same_clip({**clip, name: wrong}, generator)
        noise = torch.randn(clip[name].shape, generator=torch.Generator().manual_seed(0))
        noise *= clip[name].norm() / noise.norm()
        galip.check_same_clip({**clip, name: clip[name] + 0.005 * noise}, generator)  # more than any rounding
        with pytest.raises(ValueError, match="not the one inside"):  # a fine-tuned CLIP
            galip.check_same_clip({**clip, name: clip[name] + 0.05 * noise}, generator)
    with pytest.raises(ValueError, match="no image tower"):
        galip.check_same_clip({"text_projection": torch.zeros(64, 20)}, generator)
