"""GLIDE's files: which network it is, every layout that is read, and everything that is refused."""

import pickle

import pytest
import torch
from glide_tools import VARIANTS, facts, released, state_dict
from safetensors.torch import save_file

from guidance_lab import glide
from guidance_lab.glide.checkpoint import text_tensors, unet_tensors
from guidance_lab.glide.config import infer_config
from guidance_lab.glide.text import TextEncoder
from guidance_lab.glide.unet import UNet

SMALL = "upsample-inpaint"


def shapes_of(config) -> dict[str, list[int]]:
    with torch.device("meta"):
        parts = UNet(config), TextEncoder(config)
    return {key: list(value.shape) for part in parts for key, value in part.state_dict().items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_released_networks_are_told_apart_and_built_with_their_names_and_shapes(variant):
    expected = released()[variant]
    config = infer_config({key: torch.empty(shape, device="meta") for key, shape in expected.items()})
    upsampler = variant.startswith("upsample")
    assert (
        config.variant == variant and config.channels == 192 and config.text_ctx == 128 and config.vocabulary == 50257
    )
    assert config.channel_mult == ((1, 1, 2, 2, 4, 4) if upsampler else (1, 2, 3, 4)) and config.num_res_blocks == (
        2 if upsampler else 3
    )
    assert config.attention == ((False, False, False, True, True, True) if upsampler else (False, True, True, True))
    assert config.text_layers == 16 and config.text_width == 512
    assert config.noise_schedule == ("linear" if upsampler else "squaredcos_cap_v2")
    assert shapes_of(config) == expected


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_recorded_networks_are_read_from_their_shapes(variant):
    config, expected = glide.load(state_dict(variant)).config, facts()["config"][variant]
    assert (
        config.variant == variant
        and config.text_ctx == expected["text_ctx"]
        and config.noise_schedule == expected["noise_schedule"]
    )
    assert (
        ",".join(map(str, config.channel_mult)) == expected["channel_mult"]
        and config.num_res_blocks == expected["num_res_blocks"]
    )
    assert sum(value.numel() for value in state_dict(variant).values()) == expected["params"]


def test_every_tensor_belongs_to_one_of_the_two_parts():
    tensors = state_dict(SMALL)
    text, unet = text_tensors(tensors), unet_tensors(tensors)
    assert (
        not text.keys() & unet.keys()
        and text.keys() | unet.keys() == tensors.keys()
        and len(text) > 10
        and len(unet) > 10
    )


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_files(tmp_path, suffix):
    path = tmp_path / f"network.{suffix}"
    if suffix == "pt":
        torch.save(state_dict(SMALL), path)
    else:
        save_file(state_dict(SMALL), path)
    model = glide.load(path)
    for key, value in {**model.unet.state_dict(), **model.text_encoder.state_dict()}.items():
        assert torch.equal(value, state_dict(SMALL)[key])
    assert not model.training and not any(p.requires_grad for p in model.parameters())


def test_what_is_saved_is_read_back(tmp_path):
    model = glide.load(state_dict(SMALL))
    glide.save(model, tmp_path / "a.safetensors")
    glide.save(model, tmp_path / "half.safetensors", torch.float16)
    again, half = glide.load(tmp_path / "a.safetensors"), glide.load(tmp_path / "half.safetensors")
    assert again.config == half.config == model.config
    assert torch.equal(again.unet.out[2].weight, model.unet.out[2].weight)
    assert torch.equal(half.unet.out[2].weight, model.unet.out[2].weight.half().float())
    model.unet.out[2].bias.data.fill_(1e6)
    with pytest.raises(ValueError, match="does not fit"):
        glide.save(model, tmp_path / "b.safetensors", torch.float16)


class Malicious:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (self.marker, "w")


def test_code_in_a_file_is_never_run(tmp_path):
    marker = tmp_path / "ran"
    for name, write in (("zip.pt", lambda path: torch.save({"a": Malicious(str(marker))}, path)),
                        ("plain.pt", lambda path: path.write_bytes(pickle.dumps(Malicious(str(marker)))))):  # fmt: skip
        write(tmp_path / name)
        with pytest.raises(ValueError, match="the file"):
            glide.load(tmp_path / name)
    assert not marker.exists()


def test_cut_missing_and_foreign_files(tmp_path):
    with pytest.raises(ValueError, match="none.pt: there is no such file"):
        glide.load(tmp_path / "none.pt")
    torch.save(state_dict(SMALL), tmp_path / "whole.pt")
    save_file(state_dict(SMALL), tmp_path / "whole.safetensors")
    for suffix in ("pt", "safetensors"):
        content = (tmp_path / f"whole.{suffix}").read_bytes()
        for size in (0, 10, len(content) // 2, len(content) - 1000):
            (tmp_path / f"cut.{suffix}").write_bytes(content[:size])
            with pytest.raises(ValueError, match="the file"):
                glide.load(tmp_path / f"cut.{suffix}")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="not named weights"):
        glide.load(tmp_path / "list.pt")


def changed(key: str, value=None) -> dict:
    tensors = dict(state_dict(SMALL))
    if value is None:
        del tensors[key]
    else:
        tensors[key] = value
    return tensors


@pytest.mark.parametrize("tensors, words", [
    ({}, "'input_blocks.0.0.weight' is missing"),
    ({"a": 1}, "'a' is not a floating point tensor"),
    ({3: torch.zeros(1)}, "'3' is not a floating point tensor"),
    (changed("out.2.bias"), "1 tensors of the network are missing, first 'out.2.bias'"),
    (changed("final_ln.weight"), "missing, first 'final_ln.weight'"),
    (changed("time_embed.0.weight"), "'time_embed.0.weight' is missing"),
    (changed("positional_embedding"), "'positional_embedding' is missing"),
    (changed("token_embedding.weight"), "'token_embedding.weight' is missing"),
    (changed("input_blocks.1.0.out_layers.3.weight"), "'input_blocks.1.0.out_layers.3.weight' is missing"),
    (changed("input_blocks.0.0.weight", torch.zeros(64, 4, 3, 3)), "reads 4 channels, and GLIDE's read 3, 6, 7 or 10"),
    (changed("input_blocks.0.0.weight", torch.zeros(64)), "expected 4 dimensions"),
    (changed("out.2.bias", torch.zeros(3)), "has shape \\[3\\], but the other sizes of this network ask for \\[6\\]"),
    (changed("out.2.bias", torch.full((6,), torch.nan)), "not finite"),
    (changed("extra", torch.zeros(3)), "do not belong to a GLIDE network, first 'extra'"),
    (changed("positional_embedding", torch.zeros(32, 100)), "64 wide"),
])  # fmt: skip
def test_wrong_networks_are_refused_in_one_sentence(tensors, words):
    with pytest.raises(ValueError, match=f"cannot load the state dict: .*{words}") as error:
        glide.load(tensors)
    assert "\n" not in str(error.value) and ". " not in str(error.value).removesuffix(".")


def test_a_network_without_its_last_blocks_is_refused():
    tensors = {key: value for key, value in state_dict(SMALL).items() if not key.startswith("output_blocks.3.")}
    with pytest.raises(ValueError, match="do not make|missing"):
        glide.load(tensors)
