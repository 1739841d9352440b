"""The Shapes GALIP without ComfyUI: its parts, those of the ablations, and its size on disk."""

import torch

from guidance_lab import galip
from guidance_lab.experiments.galip_networks import DIMS, NoMapper, draw, image_encoder, networks, noise, put_in_clip


def test_its_file_is_small_and_loads(tmp_path):
    network = networks()[0]
    galip.save_generator(network, tmp_path / "galip.safetensors")
    assert (tmp_path / "galip.safetensors").stat().st_size < 6e6
    again = galip.load_generator(tmp_path / "galip.safetensors")
    assert again.dims == DIMS
    pictures = draw(again, torch.zeros(1, 128), noise(1, 0))
    assert pictures.shape == (1, 128, 128, 3)


def test_the_clip_inside_is_the_clip_outside():
    source = galip.ImageEncoder(128, 4, 8, 16, 128)
    encoder = image_encoder(source.state_dict(), normalize_twice=False)
    network = networks()[0]
    put_in_clip(network, encoder)
    galip.check_same_clip({f"visual.{key}": value for key, value in source.state_dict().items()}, network)
    weight = "transformer.resblocks.3.mlp.c_proj.weight"
    assert torch.equal(network.mapping.CLIP_ViT.state_dict()[weight], source.state_dict()[weight])
    assert not any(p.requires_grad for p in network.mapping.CLIP_ViT.parameters())


def test_the_discriminators_are_of_one_size(generator):
    with_clip, without = (networks(clip_in_d=clip_in_d)[1] for clip_in_d in (True, False))
    images, features = (
        torch.randn(2, 3, 128, 128, generator=generator),
        torch.randn(2, 3, 128, 8, 8, generator=generator),
    )
    assert with_clip(features).shape == without(images).shape == (2, 128, 8, 8)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (with_clip, without)]
    assert 0.7 < sizes[0] / sizes[1] < 1.6, sizes


def test_without_clip_the_generator_still_draws():
    network = networks(clip_in_g=False)[0]
    put_in_clip(network, image_encoder(galip.ImageEncoder(128, 4, 8, 16, 128).state_dict(), True))
    assert isinstance(network.mapping.CLIP_ViT, NoMapper)
    assert network(noise(1, 0), torch.zeros(1, 128)).shape == (1, 3, 128, 128)
