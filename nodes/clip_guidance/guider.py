"""CLIP Guidance (patch) and UPainting CLIP Guider: the same guidance as a MODEL and as a GUIDER."""

import comfy.samplers

from ...guidance.schedule import Window
from .._api import io
from ..host import attach
from ..host.curve_input import curve_input, over_time
from ..host.decode import make_decoder
from ..host.decoder_input import decoder_input
from ..host.gradient import resident
from .objective import ObjectiveSocket
from .score_guidance import SIZES, ScoreGuidance, Settings, ThroughModel, scores_noisy
from .views import Views

CATEGORY = "Guidance Lab/CLIP"
X0, THROUGH = "x0", "through model"
UPAINTING, ESTIMATE = "UPainting", "x0"
ALIASES = [
    "UPainting",
    "CLIP guidance",
    "classifier guidance",
    "universal guidance",
    "MPGD",
    "DPS",
    "Disco Diffusion",
    "cross-modal",
]


def _settings() -> list[io.Input]:
    """The inputs that both nodes share, in their order."""
    return [
        ObjectiveSocket.Input(
            "objective",
            tooltip="What the picture is pulled towards: an Objective node (CLIP text, CLIP image, classifier, ...) or "
            "several, combined.",
        ),
        decoder_input(),
        io.Float.Input(
            "strength",
            default=0.5,
            min=-10.0,
            max=10.0,
            step=0.05,
            tooltip="How far each step is moved, whatever the scorer's own scale: with size rms, the share of the "
            "noise's own size. "
            "UPainting's published defaults come to 0.5; usual 0.2 to 1. 0 is off and loads nothing; negative pulls "
            "away.",
        ),
        io.Float.Input(
            "start_percent",
            default=0.2,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where the guidance starts, as a part of the sampling: 0 is the noisiest step, 1 the last. 0.2 is "
            "UPainting's 10 of 50: before it the estimate is a blur that says little.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            tooltip="Where it ends, this point included; usually 0.7 to 1.",
        ),
        io.Combo.Input(
            "gradient",
            options=[X0, THROUGH],
            default=X0,
            tooltip="x0: the gradient at the estimate; the diffusion model is not differentiated, which is cheap and "
            "works with all. through model: back through model and CFG, as the papers do; about one more CFG step and "
            "much more memory, and refused with the reason where it cannot be right (low VRAM, quantised weights, "
            "hooks on the prompt).",
        ),
        io.Combo.Input(
            "blend",
            options=[UPAINTING, ESTIMATE],
            default=UPAINTING,
            tooltip="What is looked at. UPainting: estimate and noisy picture mixed by the noise level, which differs "
            "in the last third of the steps only. x0: the estimate alone.",
        ),
        io.Int.Input(
            "every",
            default=1,
            min=1,
            max=100,
            tooltip="A new gradient at every n-th step; between them the last one is used again, at the size that "
            "belongs to the step. "
            "2 halves the cost.",
        ),
        io.Int.Input(
            "crops",
            default=1,
            min=0,
            max=64,
            tooltip="Random squares of the picture that are scored at each step, beside the whole view; usual 1 to 16. "
            "More make the gradient steadier, and each costs one pass of the scorer. vae_crop decodes each by itself, "
            "at least one.",
        ),
        io.Boolean.Input(
            "whole_view",
            default=True,
            tooltip="Whether the whole picture is scored too, made small and square by margins; it keeps the "
            "composition in sight. vae_crop shows crops only.",
        ),
        io.Int.Input(
            "seed",
            default=0,
            min=0,
            max=2**64 - 1,
            control_after_generate=False,
            tooltip="Seed of the crops, 0 to 2^64 - 1. They are drawn by this node's own generator; the sampler's "
            "noise stays as it is.",
        ),
        io.Combo.Input(
            "size",
            options=list(SIZES),
            default=SIZES[0],
            advanced=True,
            tooltip="What strength means. rms: the size of the shift itself, the same for every scorer, model and "
            "resolution. "
            "clamp: the gradient's own size, cut at RMS 0.05 (UPainting's rule; strengths of 10 and more, with a "
            "large objective weight). "
            "exact: gamma in log p + gamma x score, for those who know its scale.",
        ),
        curve_input("strength"),
    ]


def guided(
    model, node_id, objective=None, decoder=None, strength=0.5, start_percent=0.2, end_percent=1.0, gradient=X0,
    blend=UPAINTING, every=1,
    crops=1, whole_view=True, seed=0, size=SIZES[0], weight_curve=None,
):  # fmt: skip
    """A clone of the MODEL with the guidance on it, or (strength 0) without. ValueError, in one sentence, on what
    cannot work.
    """
    if model is None or objective is None:
        raise ValueError("CLIP guidance needs both a model and an objective; connect an Objective node.")
    settings = Settings(
        strength,
        Window(start_percent, end_percent),
        blended=blend == UPAINTING,
        every=every,
        size=size,
        views=Views(crops, whole_view, seed),
        curve=over_time(weight_curve),
    )
    through = gradient == THROUGH and not scores_noisy(objective)
    kind = ThroughModel if through else ScoreGuidance
    guidance = kind(objective, make_decoder(decoder, model), settings, node_id)
    if strength == 0.0:
        return model.clone()
    if through:
        model = resident(model, "model")
    return attach(model, guidance)


def _refusal(start_percent: float | None, end_percent: float | None) -> bool | str:
    """What `validate_inputs` answers; linked inputs arrive as None. The host's own range check is off for inputs named
    there.
    """
    try:
        Window(start_percent or 0.0, 1.0 if end_percent is None else end_percent)
    except ValueError as error:
        return str(error)
    return True


class CLIPGuidance(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_CLIPGuidance",
            display_name="CLIP Guidance (patch)",
            category=CATEGORY,
            description="Lets a CLIP, a classifier or any other objective look at the half-finished picture and pull "
            "it its way, at every step, with any sampler and any guider.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The model to guide. Other guidances may come before and after; they act in wiring order.",
                ),
                *_settings(),
            ],
            outputs=[io.Model.Output(tooltip="The model with the guidance on it, for KSampler or any guider node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start_percent=0.0, end_percent=1.0, decoder=None) -> bool | str:
        return _refusal(start_percent, end_percent)

    @classmethod
    def execute(cls, model, weight_curve=None, **settings) -> io.NodeOutput:
        return io.NodeOutput(guided(model, cls.hidden.unique_id, weight_curve=weight_curve, **settings))


class UPaintingCLIPGuider(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_UPaintingCLIPGuider",
            display_name="UPainting CLIP Guider",
            category=CATEGORY,
            description="A CFG guider with cross-modal guidance (UPainting): an objective looks at the half-finished "
            "picture at every step and pulls it its way. The same as CLIP Guidance (patch) followed by CFGGuider.",
            search_aliases=ALIASES,
            inputs=[
                io.Model.Input("model", tooltip="The model to sample with; other guidance nodes may be on it."),
                io.Conditioning.Input("positive", tooltip="What the picture should show, as for any sampler."),
                io.Conditioning.Input("negative", tooltip="What it should not show; not evaluated at cfg 1."),
                io.Float.Input(
                    "cfg",
                    default=7.5,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Classifier-free guidance beside the objective, 1 is off; UPainting uses 7.5.",
                ),
                *_settings(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, start_percent=0.0, end_percent=1.0, decoder=None) -> bool | str:
        return _refusal(start_percent, end_percent)

    @classmethod
    def execute(cls, model, positive, negative, cfg, weight_curve=None, **settings) -> io.NodeOutput:
        made = guided(model, cls.hidden.unique_id, weight_curve=weight_curve, **settings)
        guider = comfy.samplers.CFGGuider(made)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)


NODES = [CLIPGuidance, UPaintingCLIPGuider]
