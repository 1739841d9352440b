"""Damage done to a network for the length of one evaluation, through ComfyUI's own hooks.

Every function takes the `transformer_options` of an evaluation and returns a copy with one more patch; `per_evaluation`
puts such a function around a model. Nothing is stored in the module, so the undamaged model shares it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from comfy.ldm.modules.attention import SpatialTransformer
from comfy.patcher_extension import WrappersMP

from ...guidance import weaker
from ..host.blocks import Block, DitLayout

WRAPPER_KEY = "GuidanceLab_WeakerVersion"
# (transformer_options, x in the sampler's frame, sigma of the batch) → transformer_options
Change = Callable[[dict, torch.Tensor, torch.Tensor], dict]
Order = Callable[[int, torch.device], torch.Tensor]


def per_evaluation(model, change: Change):
    """A clone of the MODEL whose every evaluation sees `change(transformer_options, x, sigma)`. The input is not
    touched.
    """

    def evaluate(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = change(transformer_options or {}, x, t)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    weak = model.clone()
    weak.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, evaluate)
    return weak


def at_higher_sigma(model, shift: float):
    """A clone of the MODEL whose network is told the noise level σ·(1 + shift) while it looks at the same input.

    Self-Guidance (2412.05827) shifts only the network's timestep: the scaled input, and the step from network output to
    x0, stay those of the true σ. ComfyUI scales the input and converts the output inside the evaluation, so the input
    is pre-scaled to arrive unchanged, and the network output is recovered from the returned x0 (affine in it for every
    prediction type) and converted again at the true σ.
    """

    def evaluate(executor, x, t, *args, **kwargs):
        sampling = executor.class_obj.model_sampling
        shifted = weaker.shifted_sigma(t, shift, float(sampling.sigma_max))
        if torch.equal(shifted, t):
            return executor(x, t, *args, **kwargs)
        one = torch.ones_like(x)
        same_input = x * (sampling.calculate_input(t, one) / sampling.calculate_input(shifted, one))
        x0 = executor(same_input, shifted, *args, **kwargs)
        x0_of_zero = sampling.calculate_denoised(shifted, torch.zeros_like(x0), same_input)
        per_unit = sampling.calculate_denoised(shifted, torch.ones_like(x0), torch.zeros_like(same_input))
        return sampling.calculate_denoised(t, (x0 - x0_of_zero) / per_unit, x)

    weak = model.clone()
    weak.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, evaluate)
    return weak


def _with_patch(options: dict, name: str, patch, first: bool = False) -> dict:
    patches = options.get("patches", {})
    others = patches.get(name, [])
    return {**options, "patches": {**patches, name: [patch, *others] if first else [*others, patch]}}


def _with_replacements(options: dict, kind: str, replacements: dict) -> dict:
    tables = options.get("patches_replace", {})
    return {**options, "patches_replace": {**tables, kind: {**tables.get(kind, {}), **replacements}}}


def skip_unet_blocks(options: dict, blocks: list[Block]) -> dict:
    """Leave out the whole transformer stage (self-attention, cross-attention, feed-forward) of the given UNet blocks.

    The stage is residual, x + f(x), so leaving it out is exact; the convolutions of the block stay.
    """

    def stage(layer, x, emb, context, layer_options, *of_video_and_upsampling):
        result = x if layer_options["block"] in blocks else layer(x, context, layer_options)
        layer_options["transformer_index"] += 1  # the host counts only the stages that it runs itself
        return result

    return _with_patch(options, "forward_timestep_embed_patch", (SpatialTransformer, stage), first=True)


def skip_dit_blocks(options: dict, layout: DitLayout, blocks: list[Block]) -> dict:
    """Leave out whole transformer blocks: image and text streams pass unchanged (skip-layer guidance)."""

    def skip(args, extra):
        return args[layout.image] if layout.bare else args

    return _with_replacements(options, "dit", {layout.key(block): skip for block in blocks})


def identity_unet_attention(options: dict, blocks: list[Block]) -> dict:
    """Self-attention returns its values: every token looks at itself (PAG).

    It stands in for every attention of these blocks, also one that another node put at a single layer of them (SAG at
    middle, 0, 0), and for what another node does to spare attention work there (ToMe, HyperTile).
    """
    at_layers = options.get("patches_replace", {}).get("attn1", {})

    def values(inner):
        def attention(q, k, v, extra, mask=None):
            if (
                inner is not None
            ):  # what it keeps of this evaluation (SAG its scores) is wanted when it is sampled alone
                inner(q, k, v, extra)
            return v

        return attention

    keys = {block: None for block in blocks} | {
        key: at_layers[key] for key in at_layers if key[:2] in blocks and key[2:]
    }
    replacements = {key: values(inner) for key, inner in keys.items()}
    return _with_replacements(_without_rearranging(options, blocks), "attn1", replacements)


def _without_rearranging(options: dict, blocks: list[Block]) -> dict:
    """Leaves out, in the given blocks, patches that rearrange or merge tokens before the self-attention and put them
    back behind it. Such a pair of patches comes out of one function; a patch without a partner stays.
    """

    def maker(patch):
        name = getattr(patch, "__qualname__", type(patch).__qualname__)
        return getattr(patch, "__module__", None), name.rpartition(".")[0]

    def elsewhere(patch):
        # Called as patch(q, k, v, extra) before, and as patch(out, extra) behind the attention.
        def run(*args):
            if args[-1].get("block") in blocks:
                return args[:-1] if len(args) > 2 else args[0]
            return patch(*args)

        return run

    patches = options.get("patches", {})
    before, behind = ({maker(p) for p in patches.get(name, [])} for name in ("attn1_patch", "attn1_output_patch"))
    pairs = before & behind
    changed = {
        name: [elsewhere(p) if maker(p) in pairs else p for p in patches[name]]
        for name in ("attn1_patch", "attn1_output_patch")
        if name in patches
    }
    return {**options, "patches": {**patches, **changed}}


def blur_unet_queries(options: dict, blocks: list[Block], sigma: float) -> dict:
    """Self-attention with queries blurred over the feature map of the block (SEG). `sigma` in tokens.

    What is blurred is the input of the query projection, which is linear and has no bias: the same queries, and before
    any other node tiles or merges them (HyperTile, ToMe) or computes the attention in its own way (SAG).
    """

    def before_attention(q, k, v, extra):
        if extra.get("block") in blocks:
            q = weaker.blur_queries(q, tuple(extra["activations_shape"][-2:]), sigma)
        return q, k, v

    return _with_patch(options, "attn1_patch", before_attention, first=True)


def shuffle_unet_tokens(options: dict, blocks: list[Block], order: Order) -> dict:
    """Every transformer block in the given UNet blocks gets its tokens in a random order (TPG).

    The paper permutes the input of a block. Self-attention, cross-attention and feed-forward treat all tokens alike, so
    block(Sx) = S block(x): permuting after the self-attention, where ComfyUI has a hook, gives the same output.
    """

    def after_self_attention(x, extra):
        return x[:, order(x.shape[1], x.device)] if extra.get("block") in blocks else x

    return _with_patch(options, "middle_patch", after_self_attention)


def shuffle_dit_tokens(options: dict, layout: DitLayout, blocks: list[Block], order: Order) -> dict:
    """The update of the given transformer blocks is computed on image tokens in a random order: x + (block(Sx) − Sx).

    In a UNet the stage's own skip connection keeps the picture in place under a shuffled update; a transformer has no
    such skip around the block, so the residual stream is kept here and only what the block adds is scrambled.
    """
    name = layout.image

    def replacement(inner, block):
        def run(args, extra):
            image = args[name]
            first = 0 if block[0] == "double" else args["transformer_options"]["img_slice"][0]
            permutation = torch.arange(image.shape[1], device=image.device)
            permutation[first:] = order(image.shape[1] - first, image.device) + first
            shuffled = image[:, permutation]
            original = extra["original_block"] if inner is None else lambda changed: inner(changed, extra)
            out = dict(original({**args, name: shuffled.clone()}))  # some blocks add to their input in place
            update = out[name][:, first:] - shuffled[:, first:]
            out[name] = torch.cat((out[name][:, :first], image[:, first:] + update), dim=1)
            return out

        return run

    return _replace_dit(options, layout, blocks, replacement)


def _replace_dit(options: dict, layout: DitLayout, blocks: list[Block], replacement) -> dict:
    existing = options.get("patches_replace", {}).get("dit", {})
    return _with_replacements(
        options, "dit", {layout.key(block): replacement(existing.get(layout.key(block)), block) for block in blocks}
    )


@dataclass(frozen=True)
class Tokens:
    """What the picture is to a transformer: frames x height x width tokens, row by row, and how many with padding."""

    frames: int
    height: int
    width: int
    padded: int

    @property
    def picture(self) -> int:
        return self.frames * self.height * self.width


def perturb_dit_attention(options: dict, layout: DitLayout, blocks: list[Block], tokens: Tokens, attention) -> dict:
    """Inside the given blocks every attention over image tokens becomes `attention(inner, q, k, v, text_tokens, heads,
    kwargs)`.

    `inner` is the attention that would have run; `text_tokens` how many tokens come before the image ones (0 where the
    attention is over image tokens only).
    """
    outer = options.get("optimized_attention_override")

    def override(text_of):
        """The attention override in which `text_of(number of tokens, options)` tells text tokens, or None: not ours."""

        def run(func, q, k, v, heads, *rest, **kwargs):
            def inner(*inputs, **named):
                return func(*inputs, **named) if outer is None else outer(func, *inputs, **named)

            if rest:
                kwargs["mask"] = rest[0]
            count = q.shape[-2] if kwargs.get("skip_reshape") else q.shape[1]
            text_tokens = text_of(count, kwargs.get("transformer_options") or {})
            if text_tokens is None:
                return inner(q, k, v, heads, **kwargs)
            return attention(inner, q, k, v, text_tokens, heads, kwargs)

        return run

    if layout.hook is None:
        # The host says only in which block an attention runs. What is not the picture comes first.
        def text_of(count, where):
            chosen = (where.get("block_type"), where.get("block_index")) in blocks
            return count - tokens.padded if chosen and count >= tokens.padded else None

        return {**options, "optimized_attention_override": override(text_of)}

    def replacement(previous, block):
        def run(args, extra):
            block_options = args["transformer_options"]
            text = args["txt"].shape[1] if "txt" in args else block_options["img_slice"][0]
            image = args["img"].shape[1] - (0 if "txt" in args else text)
            here = override(lambda count, _: {text + image: text, image: 0}.get(count))
            changed = {**args, "transformer_options": {**block_options, "optimized_attention_override": here}}
            return extra["original_block"](changed) if previous is None else previous(changed, extra)

        return run

    return _replace_dit(options, layout, blocks, replacement)


def identity_dit_attention(options: dict, layout: DitLayout, blocks: list[Block], tokens: Tokens) -> dict:
    """Image tokens attend to the text and to themselves only; text tokens attend to everything as before (PAG, joint
    form).
    """

    def attention(inner, q, k, v, text_tokens, heads, kwargs):
        mask = kwargs.get("mask")
        if mask is not None and mask.ndim == 3:
            mask = mask.unsqueeze(1)
        in_heads = kwargs.get("skip_reshape", False)
        split = (
            (lambda tensor: tensor)
            if in_heads
            else (lambda tensor: tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2))
        )
        image = weaker.identity_attention(split(q), split(k), split(v), text_tokens, mask, kwargs.get("scale"))
        if not kwargs.get("skip_output_reshape"):
            image = image.transpose(1, 2).flatten(-2)
        if text_tokens == 0:
            return image
        text_mask = (
            None
            if mask is None
            else mask.expand(*mask.shape[:-2], split(q).shape[-2], mask.shape[-1])[..., :text_tokens, :]
        )
        text_q = q[..., :text_tokens, :] if in_heads else q[:, :text_tokens]
        text = inner(text_q, k, v, heads, **{**kwargs, "mask": text_mask})
        return torch.cat((text, image), dim=-2)

    return perturb_dit_attention(options, layout, blocks, tokens, attention)


def blur_dit_queries(options: dict, layout: DitLayout, blocks: list[Block], sigma: float, tokens: Tokens) -> dict:
    """Image queries blurred over the token grid of each frame, after the position encoding: the attention map itself is
    blurred (SEG). Reference pictures are left alone.
    """

    def attention(inner, q, k, v, text_tokens, heads, kwargs):
        count = q.shape[-2]
        first = count - tokens.padded if layout.picture_last else text_tokens
        last = first + tokens.picture
        frames = q[..., first:last, :].unflatten(-2, (tokens.frames, -1))
        blurred = weaker.blur_queries(frames, (tokens.height, tokens.width), sigma).flatten(-3, -2)
        return inner(torch.cat((q[..., :first, :], blurred, q[..., last:, :]), dim=-2), k, v, heads, **kwargs)

    return perturb_dit_attention(options, layout, blocks, tokens, attention)
