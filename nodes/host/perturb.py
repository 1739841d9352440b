"""Damage done to a network for the length of one evaluation, through ComfyUI's own hooks.

Every function takes the `transformer_options` of an evaluation and returns a copy with one more patch; `per_evaluation`
puts such a function around a model. Nothing is stored in the module, so the undamaged model shares it.
"""

from collections.abc import Callable

import torch
from comfy.ldm.modules.attention import SpatialTransformer, optimized_attention
from comfy.patcher_extension import WrappersMP

from ...guidance import weaker
from .blocks import Block

WRAPPER_KEY = "GuidanceLab_WeakerVersion"
# (transformer_options, x in the sampler's frame, sigma of the batch) → transformer_options
Change = Callable[[dict, torch.Tensor, torch.Tensor], dict]
Order = Callable[[int, torch.device], torch.Tensor]


def per_evaluation(model, change: Change):
    """A clone of the MODEL whose every evaluation sees `change(transformer_options, x, sigma)`. The input is not touched."""

    def evaluate(executor, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        options = change(transformer_options or {}, x, t)
        return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)

    weak = model.clone()
    weak.add_wrapper_with_key(WrappersMP.APPLY_MODEL, WRAPPER_KEY, evaluate)
    return weak


def at_higher_sigma(model, shift: float):
    """A clone of the MODEL whose network is told the noise level σ·(1 + shift) while it looks at the same input.

    Self-Guidance (2412.05827) shifts only the network's timestep: the scaled input, and the step from network output to
    x0, stay those of the true σ. ComfyUI scales the input and converts the output inside the evaluation, so the input is
    pre-scaled to arrive unchanged, and the network output is recovered from the returned x0 (affine in it for every
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


def _dit_key(block: Block) -> tuple[str, int]:
    return (f"{block[0]}_block", block[1])


def skip_unet_blocks(options: dict, blocks: list[Block]) -> dict:
    """Leave out the whole transformer stage (self-attention, cross-attention, feed-forward) of the given UNet blocks.

    The stage is residual, x + f(x), so leaving it out is exact; the convolutions of the block stay.
    """

    def stage(layer, x, emb, context, layer_options, *of_video_and_upsampling):
        result = x if layer_options["block"] in blocks else layer(x, context, layer_options)
        layer_options["transformer_index"] += 1  # the host counts only the stages that it runs itself
        return result

    return _with_patch(options, "forward_timestep_embed_patch", (SpatialTransformer, stage), first=True)


def skip_dit_blocks(options: dict, blocks: list[Block]) -> dict:
    """Leave out whole transformer blocks: image and text streams pass unchanged (skip-layer guidance)."""
    return _with_replacements(options, "dit", {_dit_key(block): lambda args, extra: args for block in blocks})


def identity_unet_attention(options: dict, blocks: list[Block]) -> dict:
    """Self-attention returns its values: every token looks at itself (PAG)."""
    return _with_replacements(options, "attn1", {block: lambda q, k, v, extra, mask=None: v for block in blocks})


def blur_unet_queries(options: dict, blocks: list[Block], sigma: float) -> dict:
    """Self-attention with queries blurred over the feature map of the block (SEG). `sigma` in tokens."""

    def attention(q, k, v, extra, mask=None):
        blurred = weaker.blur_queries(q, tuple(extra["activations_shape"][-2:]), sigma)
        return optimized_attention(blurred, k, v, extra["n_heads"], mask, attn_precision=extra["attn_precision"], transformer_options=extra)

    return _with_replacements(options, "attn1", dict.fromkeys(blocks, attention))


def shuffle_unet_tokens(options: dict, blocks: list[Block], order: Order) -> dict:
    """Every transformer block in the given UNet blocks gets its tokens in a random order (TPG).

    The paper permutes the input of a block. Self-attention, cross-attention and feed-forward treat all tokens alike, so
    block(Sx) = S block(x): permuting after the self-attention, where ComfyUI has a hook, gives the same output.
    """

    def after_self_attention(x, extra):
        return x[:, order(x.shape[1], x.device)] if extra.get("block") in blocks else x

    return _with_patch(options, "middle_patch", after_self_attention)


def shuffle_dit_tokens(options: dict, blocks: list[Block], order: Order) -> dict:
    """The update of the given transformer blocks is computed on image tokens in a random order: x + (block(Sx) − Sx).

    In a UNet the stage's own skip connection keeps the picture in place under a shuffled update; a transformer has no
    such skip around the block, so the residual stream is kept here and only what the block adds is scrambled.
    """

    def replacement(inner):
        def run(args, extra):
            image = args["img"]
            first = 0 if "txt" in args else args["transformer_options"]["img_slice"][0]
            permutation = torch.arange(image.shape[1], device=image.device)
            permutation[first:] = order(image.shape[1] - first, image.device) + first
            shuffled = image[:, permutation]
            block = extra["original_block"] if inner is None else lambda changed: inner(changed, extra)
            out = dict(block({**args, "img": shuffled.clone()}))  # some blocks add to their input in place
            update = out["img"][:, first:] - shuffled[:, first:]
            out["img"] = torch.cat((out["img"][:, :first], image[:, first:] + update), dim=1)
            return out

        return run

    return _replace_dit(options, blocks, replacement)


def _replace_dit(options: dict, blocks: list[Block], replacement) -> dict:
    existing = options.get("patches_replace", {}).get("dit", {})
    return _with_replacements(options, "dit", {_dit_key(block): replacement(existing.get(_dit_key(block))) for block in blocks})


def perturb_dit_attention(options: dict, blocks: list[Block], attention) -> dict:
    """Inside the given blocks every attention over image tokens becomes `attention(inner, q, k, v, text_tokens, heads, kwargs)`.

    `inner` is the attention that would have run; `text_tokens` how many tokens come before the image ones (0 where the
    attention is over image tokens only).
    """
    outer = options.get("optimized_attention_override")

    def replacement(previous):
        def run(args, extra):
            block_options = args["transformer_options"]
            text = args["txt"].shape[1] if "txt" in args else block_options["img_slice"][0]
            image = args["img"].shape[1] - (0 if "txt" in args else text)

            def override(func, q, k, v, heads, *rest, **kwargs):
                def inner(*inputs, **named):
                    return func(*inputs, **named) if outer is None else outer(func, *inputs, **named)

                if rest:
                    kwargs["mask"] = rest[0]
                tokens = q.shape[-2] if kwargs.get("skip_reshape") else q.shape[1]
                text_tokens = {text + image: text, image: 0}.get(tokens)
                if text_tokens is None:
                    return inner(q, k, v, heads, **kwargs)
                return attention(inner, q, k, v, text_tokens, heads, kwargs)

            changed = {**args, "transformer_options": {**block_options, "optimized_attention_override": override}}
            return extra["original_block"](changed) if previous is None else previous(changed, extra)

        return run

    return _replace_dit(options, blocks, replacement)


def identity_dit_attention(options: dict, blocks: list[Block]) -> dict:
    """Image tokens attend to the text and to themselves only; text tokens attend to everything as before (PAG, joint form)."""

    def attention(inner, q, k, v, text_tokens, heads, kwargs):
        mask = kwargs.get("mask")
        if mask is not None and mask.ndim == 3:
            mask = mask.unsqueeze(1)
        in_heads = kwargs.get("skip_reshape", False)
        split = (lambda tensor: tensor) if in_heads else (lambda tensor: tensor.reshape(*tensor.shape[:2], heads, -1).transpose(1, 2))
        image = weaker.identity_attention(split(q), split(k), split(v), text_tokens, mask, kwargs.get("scale"))
        if not kwargs.get("skip_output_reshape"):
            image = image.transpose(1, 2).flatten(-2)
        if text_tokens == 0:
            return image
        text_mask = None if mask is None else mask.expand(*mask.shape[:-2], split(q).shape[-2], mask.shape[-1])[..., :text_tokens, :]
        text_q = q[..., :text_tokens, :] if in_heads else q[:, :text_tokens]
        text = inner(text_q, k, v, heads, **{**kwargs, "mask": text_mask})
        return torch.cat((text, image), dim=-2)

    return perturb_dit_attention(options, blocks, attention)


def blur_dit_queries(options: dict, blocks: list[Block], sigma: float, grid: tuple[int, int]) -> dict:
    """Image queries blurred over the token grid, after the position encoding: the attention map itself is blurred (SEG).

    `grid`: (height, width) of the picture in tokens; reference images that follow it are left alone.
    """

    def attention(inner, q, k, v, text_tokens, heads, kwargs):
        return inner(weaker.blur_queries(q, grid, sigma, text_tokens), k, v, heads, **kwargs)

    return perturb_dit_attention(options, blocks, attention)
