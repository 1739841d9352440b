"""The transformer blocks of a loaded network: which exist, what they are called, and which ComfyUI lets us replace.

A block is a pair (group, index). UNets have the groups `input`, `middle`, `output` in ComfyUI's own numbering;
diffusion transformers have `double` (two streams, or the only kind) and `single` (one merged stream).
"""

import re
from dataclasses import dataclass
from operator import attrgetter

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

Block = tuple[str, int]


@dataclass(frozen=True)
class DitLayout:
    """What ComfyUI offers for one transformer class: its replaceable groups, and what we know of its tokens.

    groups: group name → attribute that holds the blocks; the hook is patches_replace["dit"][(hook, index)].
    hook: what the host calls a block, `<group>_block` unless given. None: it has no hook for whole blocks.
    image: under which name a block is given its image tokens, and returns them.
    bare: a block returns its tokens themselves, not a dictionary of names.
    shuffles: a double block is given image tokens alone, one row for each picture, and can be run on others of them.
    joint_attention: one attention over text tokens followed by image tokens, so image queries can be told apart.
    windows: it can be shown a part of its latent, which has a height and a width.
    picture_last: reference pictures come before the picture itself among the image tokens, not behind it.
    """

    groups: dict[str, str]
    joint_attention: bool = False
    picture_last: bool = False
    image: str = "img"
    shuffles: bool = True
    hook: str | None = "{group}_block"
    bare: bool = False
    windows: bool = True

    def key(self, block: Block) -> tuple[str, int]:
        """Under which key the host looks for a replacement of the block."""
        return self.hook.format(group=block[0]), block[1]


_WAN = DitLayout({"double": "blocks"})
_NEXT_DIT = DitLayout({"double": "layers"}, joint_attention=True, picture_last=True, hook=None)
_STREAMS = {"double": "double_blocks", "single": "single_blocks"}

# Exact classes, not subclasses: a subclass may walk its blocks without looking for replacements. (CausalWanModel does,
# under SamplerARVideo.)
DIT_LAYOUTS = {
    "comfy.ldm.flux.model.Flux": DitLayout(_STREAMS, joint_attention=True),
    "comfy.ldm.chroma.model.Chroma": DitLayout(_STREAMS, joint_attention=True),
    "comfy.ldm.chroma_radiance.model.ChromaRadiance": DitLayout(_STREAMS, joint_attention=True),
    "comfy.ldm.modules.diffusionmodules.mmdit.OpenAISignatureMMDITWrapper": DitLayout(
        {"double": "joint_blocks"}, joint_attention=True
    ),
    "comfy.ldm.hunyuan_video.model.HunyuanVideo": DitLayout(_STREAMS, joint_attention=True, picture_last=True),
    "comfy.ldm.aura.mmdit.MMDiT": DitLayout({"double": "double_layers"}, joint_attention=True),
    "comfy.ldm.qwen_image.model.QwenImageTransformer2DModel": DitLayout(
        {"double": "transformer_blocks"}, joint_attention=True
    ),
    "comfy.ldm.mage_flow.model.MageFlowTransformer2DModel": DitLayout(
        {"double": "transformer_blocks"}, joint_attention=True
    ),
    "comfy.ldm.lumina.model.NextDiT": _NEXT_DIT,
    "comfy.ldm.lumina.model.NextDiTPixelSpace": _NEXT_DIT,
    "comfy.ldm.wan.model.WanModel": _WAN,
    "comfy.ldm.wan.model.VaceWanModel": _WAN,
    "comfy.ldm.wan.model.CameraWanModel": _WAN,
    "comfy.ldm.wan.model.WanModel_S2V": _WAN,
    "comfy.ldm.wan.model.HumoWanModel": _WAN,
    "comfy.ldm.wan.model.SCAILWanModel": _WAN,
    "comfy.ldm.wan.model.SCAIL2WanModel": _WAN,
    "comfy.ldm.wan.model_animate.AnimateWanModel": _WAN,
    "comfy.ldm.wan.model_wandancer.WanDancerModel": _WAN,
    "comfy.ldm.lightricks.model.LTXVModel": DitLayout({"double": "transformer_blocks"}),
    "comfy.ldm.lightricks.av_model.LTXAVModel": DitLayout(
        {"double": "transformer_blocks"}, shuffles=False, windows=False
    ),
    "comfy.ldm.genmo.joint_model.asymm_models_joint.AsymmDiTJoint": DitLayout({"double": "blocks"}),
    # The host's way back to the original block calls it with a name that it does not know.
    "comfy.ldm.kandinsky5.model.Kandinsky5": DitLayout(
        {"double": "visual_transformer_blocks"}, image="x", shuffles=False
    ),
    "comfy.ldm.hydit.models.HunYuanDiT": DitLayout({"double": "blocks"}),
    "comfy.ldm.hunyuan3d.model.Hunyuan3Dv2": DitLayout(_STREAMS, shuffles=False, windows=False),
    "comfy.ldm.hunyuan3dv2_1.hunyuandit.HunYuanDiTPlain": DitLayout(
        {"double": "blocks"}, image="x", shuffles=False, hook="block", bare=True, windows=False
    ),
    # It is told the place of every token of the whole picture.
    "comfy.ldm.hidream_o1.model.HiDreamO1Transformer": DitLayout(
        {"double": "language_model.layers"}, image="x", shuffles=False, windows=False
    ),
    "comfy.ldm.joyimage.model.JoyImageTransformer3DModel": DitLayout({"double": "double_blocks"}),
    "comfy.ldm.lens.model.LensTransformer2DModel": DitLayout({"double": "transformer_blocks"}),
    # Picture or sound tokens stand in one row with others: what the noise level and the length of a sound became, text.
    "comfy.ldm.audio.dit.AudioDiffusionTransformer": DitLayout(
        {"double": "transformer.layers"}, shuffles=False, windows=False
    ),
    "comfy.ldm.minimax.model.MiniMaxH3Model": DitLayout({"double": "blocks"}, shuffles=False, windows=False),
    "comfy.ldm.seedvr.model.NaDiT": DitLayout({"double": "blocks"}, image="vid", shuffles=False, hook="block"),
}


def is_unet(network: torch.nn.Module) -> bool:
    """Whether the network is ComfyUI's UNet (SD1.x, SD2.x, SDXL and their kin)."""
    return isinstance(network, UNetModel)


def dit_layout(network: torch.nn.Module) -> DitLayout | None:
    """The layout of a diffusion transformer whose block hooks were checked, None for any other network."""
    return DIT_LAYOUTS.get(f"{type(network).__module__}.{type(network).__qualname__}")


def list_blocks(network: torch.nn.Module, attention_only: bool = False) -> list[Block]:
    """Every transformer block that can be replaced, in the order of the forward pass. Empty when there is no hook.

    attention_only: those in which only the attention has to be reached.

    Of a UNet only plain image stages: in a video stage the hooks act on the attention over time as well.
    """
    if is_unet(network):
        groups = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
        return [
            (group, index)
            for group, stages in groups.items()
            for index, stage in enumerate(stages)
            if stage is not None and any(type(layer) is SpatialTransformer for layer in stage)
        ]
    layout = dit_layout(network)
    if layout is None or (layout.hook is None and not attention_only):
        return []
    return [
        (group, index)
        for group, attribute in layout.groups.items()
        for index in range(len(attrgetter(attribute)(network)))
    ]


def describe_blocks(blocks: list[Block]) -> str:
    """The shortest block list that names these blocks: `input:1-2, input:4, middle:0`."""
    runs: list[list] = []
    for group, index in blocks:
        if runs and runs[-1][0] == group and runs[-1][2] == index - 1:
            runs[-1][2] = index
        else:
            runs.append([group, index, index])
    return ", ".join(f"{group}:{first}" if first == last else f"{group}:{first}-{last}" for group, first, last in runs)


def parse_blocks(text: str, available: list[Block], default: list[Block]) -> list[Block]:
    """`middle:0, input:4, output:3-5` → blocks in the order of `available`; `default` → the given ones; empty → none.

    Raises ValueError when a part cannot be read or names a block that this model does not have.
    """
    chosen: set[Block] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part == "default":
            chosen.update(default)
            continue
        match = re.fullmatch(r"([a-z]+)\s*:\s*(\d+)(?:\s*-\s*(\d+))?", part)
        if match is None:
            raise ValueError(
                f"Weaker Version cannot read the block '{part}': write for example 'middle:0, output:3-5', or "
                f"'default'."
            )
        first, last = int(match[2]), int(match[3] or match[2])
        wanted = {(match[1], index) for index in range(first, last + 1)}
        if not wanted or not wanted <= set(available):
            raise ValueError(
                f"This model has no block '{part}': the blocks that can be chosen are {describe_blocks(available)}."
            )
        chosen |= wanted
    return [block for block in available if block in chosen]


def middle_blocks(network: torch.nn.Module, available: list[Block]) -> list[Block]:
    """Where a damaged network still draws the same scene: the UNet's middle block; three tenths into a transformer.

    PAG and SEG damage the middle block of SD1.5 and SDXL; skip-layer guidance was published for layers 7-9 of the 24 of
    SD3.5 medium.
    """
    if is_unet(network):
        return [block for block in available if block[0] == "middle"] or available[len(available) // 2 :][:1]
    first_group = [block for block in available if block[0] == available[0][0]]
    start, stop = round(len(first_group) * 7 / 24), round(len(first_group) * 10 / 24)
    return first_group[start : max(stop, start + 1)]


def deep_input_blocks(network: torch.nn.Module, available: list[Block]) -> list[Block]:
    """Where TPG shuffles: the two deepest attention stages on the way down of a UNet; as `middle_blocks` in a
    transformer.
    """
    down = [block for block in available if block[0] == "input"]
    return down[-2:] or middle_blocks(network, available)


def droppable_blocks(available: list[Block]) -> list[Block]:
    """The blocks a random drop may take: all but the first and the last, which carry the picture into and out of the
    network.
    """
    return available[1:-1]
