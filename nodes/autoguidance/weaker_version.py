"""Weaker Version: a MODEL that draws a little worse, to be pushed away from, for when no earlier checkpoint is
public.
"""

from ...guidance.weaker import INFINITE_BLUR
from .._api import io
from .weaker_methods import METHODS

BLOCKS = (
    "Which blocks: 'default', or a list such as 'middle:0, input:4, output:3-5' (UNet) or 'double:7-9, single:0' "
    "(transformers). "
    "Empty = none: the model is passed through unchanged. A wrong name is answered with the list of this model's "
    "blocks."
)
SEED = (
    "Seed of this node's own random numbers, 0 to 2^64 - 1. The same seed draws the same at the same sigma, "
    "whatever the sampler."
)


def _blocks(source: str) -> io.String.Input:
    return io.String.Input("blocks", default="default", tooltip=f"{BLOCKS} {source}")


def _seed() -> io.Int.Input:
    return io.Int.Input("seed", default=0, min=0, max=2**64 - 1, control_after_generate=False, tooltip=SEED)


def _amount(name: str, default: float, tooltip: str) -> io.Float.Input:
    return io.Float.Input(name, default=default, min=0.0, max=1.0, step=0.01, tooltip=tooltip)


def _options() -> list[io.DynamicCombo.Option]:
    """The methods and their settings. Keys and ids are permanent; the tooltips give the source and the evidence."""
    block_skip = [
        _blocks(
            "Skip-layer guidance: SD3.5 medium uses layers 7-9, weight 3.8, in the first 20 % of the steps, beside "
            "CFG. A small network takes it badly: in our 2-D toy a skipped layer gave 3, 42 and 68 % outliers in three "
            "training seeds (10, 15 and 11 % without)."
        )
    ]
    stochastic_block_skip = [
        _amount(
            "drop_fraction",
            0.1,
            "Share of the blocks left out, drawn anew at every noise level; 0.1 is the paper's, 0.05 to 0.2 typical, 0 "
            "= unchanged. The first and the last block are never dropped. S2-Guidance (arXiv 2508.12880): SD3 HPSv2.1 "
            "30.48 -> 31.09, Wan 1.3B VBench 80.29 -> 80.93, beside CFG; a ComfyUI port uses weight 1.25.",
        ),
        _seed(),
    ]
    identity_attention = [
        _blocks(
            "Self-attention becomes the identity: each image token sees only itself (and the text). PAG, arXiv "
            "2403.17377: "
            "middle block, weight 4. Well tested in text-to-image, as a supplement to CFG."
        )
    ]
    blurred_queries = [
        _blocks("Queries of the self-attention are blurred. SEG, arXiv 2408.00760: middle block, weight 4."),
        io.Float.Input(
            "blur_sigma",
            default=10.0,
            min=0.0,
            max=INFINITE_BLUR,
            step=0.1,
            tooltip="Width of the Gaussian over the queries, in tokens of the block's own grid: 1 to 10 is partial, "
            "9999 = infinite (every query is the mean query, the paper's limit), 0 = unchanged.",
        ),
    ]
    token_shuffle = [
        _blocks(
            "Tokens in a random order. TPG, arXiv 2506.10036: deep blocks on the way down, weight 4; nearly halves the "
            "FID of SDXL without a prompt, and acts much like CFG. Tested by its authors on UNets only."
        ),
        _seed(),
    ]
    higher_sigma = [
        _amount(
            "sigma_shift",
            0.1,
            "The network is told a noise level higher by this share: 0.1 = sigma x 1.1; 0.02 to 0.2 typical, 0 = "
            "unchanged. "
            "Self-Guidance, arXiv 2412.05827. In our 2-D toy 0.1 at weight 1.5 is nearly neutral: outliers 10.3 -> "
            "10.0, 15.0 -> 14.1 and 10.7 -> 9.9 % in three training seeds.",
        )
    ]
    weight_blend = [
        io.Model.Input(
            "base_model",
            tooltip="An earlier or less tuned model of the same architecture: SDXL base under an SDXL fine-tune.",
        ),
        _amount(
            "amount",
            1.0,
            "Share of the base model's weights: 1 = the base itself, 0 = unchanged, 0.5 to 1 typical. Base against "
            "fine-tune gave HPSv2 win rates up to 90 % (W2SD, arXiv 2502.00473, by reflection). Half-way blends helped "
            "a little in our 2-D toy at weight 1.5, and did nothing or harm at 2.",
        ),
    ]
    sliding_window = [
        io.Float.Input(
            "window",
            default=0.75,
            min=0.1,
            max=1.0,
            step=0.05,
            tooltip="Part of each side that a window covers: 0.5 to 0.75 typical, 1 = unchanged. SWG, arXiv "
            "2411.10257: it needs no second model, and is for large pictures, whose windows are still pictures of a "
            "size that the model knows; a ComfyUI port uses weight 6 at 768 of 1024 pixels. COST: every window is an "
            "evaluation of its own. At 0.75, 4 windows of 9/16 of the picture: 2.25 times the work of one evaluation.",
        ),
        io.Float.Input(
            "overlap",
            default=0.5,
            min=0.0,
            max=0.9,
            step=0.05,
            tooltip="The least part of a window that its neighbour covers too; predictions are averaged there. 0.25 to "
            "0.5 typical. More overlap can mean more windows, and each one costs.",
        ),
    ]
    return [
        io.DynamicCombo.Option("block_skip", block_skip),
        io.DynamicCombo.Option("stochastic_block_skip", stochastic_block_skip),
        io.DynamicCombo.Option("identity_attention", identity_attention),
        io.DynamicCombo.Option("blurred_queries", blurred_queries),
        io.DynamicCombo.Option("token_shuffle", token_shuffle),
        io.DynamicCombo.Option("higher_sigma", higher_sigma),
        io.DynamicCombo.Option("weight_blend", weight_blend),
        io.DynamicCombo.Option("sliding_window", sliding_window),
    ]


class WeakerVersion(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidanceLab_WeakerVersion",
            display_name="Weaker Version",
            category="Guidance Lab/Autoguidance",
            description="Makes a slightly worse copy of a model without a second checkpoint, as the guide of the "
            "Autoguidance Model Pair. "
            "It can also be sampled on its own, to see what it does.",
            search_aliases=[
                "PAG",
                "SEG",
                "TPG",
                "SLG",
                "STG",
                "S2-Guidance",
                "self-guidance",
                "skip layer",
                "bad model",
                "W2SD",
                "SWG",
                "sliding window guidance",
            ],
            inputs=[
                io.Model.Input(
                    "model", tooltip="The model to weaken; it stays as it is. LoRAs and other patches on it are kept."
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=_options(),
                    tooltip="How the copy is made worse. Best supported: weight_blend with a real base or earlier "
                    "model; then block_skip and the attention methods (PAG, SEG, TPG) beside CFG; then higher_sigma. "
                    "Each setting names its paper and numbers. Noise, dropout and quantised copies are not offered: "
                    "the autoguidance paper found that they do not work.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip="The weakened model, for guide_model of the Autoguidance Model Pair. Neutral settings give "
                    "the input itself."
                )
            ],
        )

    @classmethod
    def execute(cls, model, method: dict | None = None) -> io.NodeOutput:
        if method is None:  # ComfyUI drops an option that it does not know, and queues the prompt all the same
            raise ValueError(f"Weaker Version does not know this method: choose one of {', '.join(METHODS)}.")
        settings = dict(method)
        return io.NodeOutput(METHODS[settings.pop("method")](model, **settings))


NODES = [WeakerVersion]
