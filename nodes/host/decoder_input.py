"""The `decoder` widget of every node that looks at the half-finished picture; `host.decode.make_decoder` reads its
value.
"""

from .._api import io

_VAE = "The VAE that belongs to the model: its own, or a TAESD from Load VAE. One of another latent format is refused."


def decoder_input() -> io.DynamicCombo.Input:
    """`decoder`: how the estimate becomes a picture. Keys are permanent."""
    return io.DynamicCombo.Input(
        "decoder",
        options=[  # the canvas cannot make a node whose first option has sockets only
            io.DynamicCombo.Option("taesd", []),
            io.DynamicCombo.Option(
                "vae_crop", [io.Vae.Input("vae", tooltip=f"Decodes squares of the latent by themselves. {_VAE}")]
            ),
            io.DynamicCombo.Option("vae", [io.Vae.Input("vae", tooltip=f"Decodes the whole latent. {_VAE}")]),
            io.DynamicCombo.Option("latent_rgb", []),
        ],
        tooltip="How the half-finished latent becomes a picture to look at. Work of one look with its gradient, as a "
        "share of a CFG step of SD1.5 at 512 pixels (SDXL at 1024): vae_crop, the VAE on a square of the latent of the "
        "size that the scorer sees, 60 % (7 %); vae, the VAE on all of it, 310 % (160 %) and 3 GiB (11 GiB); taesd, "
        "the tiny decoder from models/vae_approx, 18 % (8 %); latent_rgb, ComfyUI's linear preview, nothing, but "
        "blurred: one pixel for each latent cell. Models that work on pixels need none, and ignore this.",
    )
