"""Small random autoencoders as ComfyUI's loaders make them. Import after ComfyUI is on the path."""

import comfy.sd
import torch

import tiny_checkpoint

SMALL_VAE = {
    "embed_dim": 4,
    "ddconfig": dict(
        double_z=True, z_channels=4, resolution=32, in_channels=3, out_ch=3, ch=32, ch_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        attn_resolutions=[], dropout=0.0,
    ),
}  # fmt: skip


def kl_vae(inference: bool = True):
    """A small KL autoencoder with random weights, made in inference mode as by a loader node, or outside."""
    with torch.inference_mode(inference):
        vae = comfy.sd.VAE(sd={}, config={"params": SMALL_VAE})
        generator = torch.Generator().manual_seed(1)
        weights = {
            name: torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5
            if p.ndim > 1
            else torch.zeros_like(p)
            for name, p in vae.first_stage_model.state_dict().items()
        }
        weights |= {
            name: torch.ones_like(value)
            for name, value in weights.items()
            if "norm" in name and name.endswith("weight")
        }
        vae.first_stage_model.load_state_dict(weights)
    return vae


def taesd_vae():
    """The same kind of VAE that Load VAE makes of a TAESD."""
    weights = {
        name.removeprefix("first_stage_model."): value for name, value in tiny_checkpoint.vae_weights(seed=2).items()
    }
    with torch.inference_mode():
        return comfy.sd.VAE(sd={**weights, "vae_scale": torch.tensor(0.18215)})
