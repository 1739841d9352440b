"""Caption Residual Guidance: the node."""

from ...guidance.schedule import Window
from .._api import io
from ..host.curve_input import curve_input, over_time
from ..host.decode import make_decoder
from .caption_guidance import Settings, caption_residual_model
from .captioner_loader import CATEGORY
from .captioners import CaptionerSocket


def _decoder_input() -> io.DynamicCombo.Input:
    """The `decoder` widget of the other guidances without the crop: a captioner has to see the whole picture. Keys are
    permanent.
    """
    vae = io.Vae.Input("vae", tooltip="The VAE that belongs to the model. One of another latent format is refused.")
    return io.DynamicCombo.Input(
        "decoder",
        # The canvas cannot make a node whose first option has a socket.
        options=[
            io.DynamicCombo.Option("taesd", []),
            io.DynamicCombo.Option("vae", [vae]),
            io.DynamicCombo.Option("latent_rgb", []),
        ],
        tooltip="How the half-finished latent becomes a picture to caption. Work of one look, as a share of a CFG step "
        "of SD1.5 at 512 pixels (SDXL at 1024): taesd, the tiny decoder from models/vae_approx, 9 % (4 %), good "
        "captions; vae, 160 % (80 %), the best; latent_rgb, ComfyUI's linear preview, nothing, but so coarse that "
        "captions are often wrong. Models that work on pixels need none, and ignore this.",
    )


class CaptionResidualGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_CaptionResidualGuidance",
            display_name="Caption Residual Guidance",
            category=CATEGORY,
            description=(
                "Looks at the half-finished picture, says in words what it sees, and pushes away from where that "
                "differs from the prompt. "
                "Stops by itself when the caption says the prompt. With any sampler and guider; captions are shown on "
                "the node."
            ),
            search_aliases=[
                "caption residual",
                "caption guidance",
                "BLIP guidance",
                "captioner",
                "dynamic negative prompt",
                "h(x)",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model to guide. Other guidances may come before or after."),
                io.Clip.Input(
                    "clip",
                    tooltip="The CLIP that encoded the prompt, with the same LoRAs: captions are encoded with it while "
                    "sampling, so it is loaded together with the model.",
                ),
                CaptionerSocket.Input(
                    "captioner", tooltip="Says what the picture shows: from Captioner Loader or Shapes Demo Models."
                ),
                _decoder_input(),
                io.Float.Input(
                    "scale",
                    default=0.5,
                    min=0.0,
                    max=20.0,
                    step=0.05,
                    tooltip="b in D = CFG - b (D_caption - D_prompt), all of them denoised estimates. 0 is off "
                    "(nothing is loaded), usual 0.25 to 1. Measured in Shapes at cfg 2: pictures of 2 or 3 things that "
                    "were all right, 35 % at 0, 36 % at 0.5, 33 % at 1 (150 pictures: no more than chance), but 37 % "
                    "at 0 against 16 % at 3 (100 pictures).",
                ),
                io.Int.Input(
                    "every",
                    default=3,
                    min=1,
                    max=100,
                    tooltip="Steps from one caption to the next; the last one is used in between. 1 to 5 usual. A "
                    "caption costs one decoding, one run of the captioner, and encoding what is new; the model's extra "
                    "third is paid at each step.",
                ),
                io.Float.Input(
                    "start_percent",
                    default=0.2,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where it starts, as a part of the sampling: 0 is the noisiest step, 1 the last. 0.1 to "
                    "0.3 usual: earlier the estimate is a blur, and its caption says nothing. The first step of all is "
                    "never guided.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Where it ends, this point included; 0.7 to 1 usual, as what is in the picture is settled "
                    "early.",
                ),
                io.String.Input(
                    "prompt",
                    default="",
                    multiline=True,
                    optional=True,
                    tooltip="The prompt as text, to see when a caption says the same in other letters (case, spaces, "
                    "last full stop). "
                    "Empty is fine: then only a caption that is encoded exactly as the positive counts as the same.",
                ),
                curve_input("scale"),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with caption guidance on it, for KSampler or any guider node.")
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, decoder=None, start_percent=0.2, end_percent=1.0) -> bool | str:
        # The host's own range check is off for inputs named here, and it always passes `decoder`; linked ones arrive as
        # None.
        try:
            Window(0.2 if start_percent is None else start_percent, 1.0 if end_percent is None else end_percent)
        except ValueError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model,
        clip,
        captioner,
        decoder=None,
        scale=0.5,
        every=3,
        start_percent=0.2,
        end_percent=1.0,
        prompt="",
        weight_curve=None,
    ) -> io.NodeOutput:
        settings = Settings(scale, Window(start_percent, end_percent), every, prompt, over_time(weight_curve))
        if clip is None:
            raise ValueError(
                "Caption Residual Guidance got an empty CLIP: the checkpoint has no text encoder; connect one from "
                "Load CLIP."
            )
        guide = make_decoder(decoder, model, gradient=False)
        return io.NodeOutput(caption_residual_model(model, clip, captioner, guide, settings, cls.hidden.unique_id))


NODES = [CaptionResidualGuidance]
