"""Tiny random diffusion transformers with true cross-attention, and what their text encoders would give them; the text
width is 24.
"""

import inspect
from dataclasses import dataclass
from functools import reduce

import comfy.ldm.anima.model
import comfy.ldm.audio.embedders
import comfy.ldm.cosmos.predict2
import comfy.ops
import comfy.samplers
import comfy.supported_models
import tiny_networks
import torch

SIGMA = 0.6
HYDIT = dict(
    image_model="hydit", depth=4, num_heads=4, patch_size=2, in_channels=4, hidden_size=64, mlp_ratio=2.0,
    input_size=(8, 8),
    text_states_dim=24, text_states_dim_t5=16, text_len=5, text_len_t5=6, size_cond=True, use_style_cond=True,
    norm="layer",
)  # fmt: skip
KANDINSKY5 = dict(
    image_model="kandinsky5", in_visual_dim=16, out_visual_dim=16, in_text_dim=24, in_text_dim2=8, time_dim=32,
    model_dim=48, ff_dim=64,
    visual_embed_dim=132, num_text_blocks=2, num_visual_blocks=3, axes_dims=(4, 4, 4),
)  # fmt: skip
COSMOS = dict(
    image_model="cosmos_predict2", max_img_h=16, max_img_w=16, max_frames=4, in_channels=16, out_channels=16,
    patch_spatial=2,
    patch_temporal=1, model_channels=96, num_blocks=3, num_heads=4, crossattn_emb_channels=24, pos_emb_cls="rope3d",
)  # fmt: skip
ANIMA = {**COSMOS, "image_model": "anima"}
STABLE_AUDIO = dict(
    audio_model="dit1.0", io_channels=64, embed_dim=64, cond_token_dim=768, global_cond_dim=1536, depth=3, num_heads=2,
    project_cond_tokens=True,
)  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A network, where its blocks are, and under which names or positions each block is given its text."""

    name: str
    blocks: str
    text: tuple[str | int, ...]
    config: dict | None = None


FAMILIES = {
    "Wan": Family("WAN21_T2V", "blocks", ("context",)),
    "LTXV": Family("LTXV", "transformer_blocks", ("context", "attention_mask")),
    "HunyuanDiT": Family("HunyuanDiT", "blocks", (2,), HYDIT),
    "Kandinsky5": Family("Kandinsky5", "visual_transformer_blocks", (1,), KANDINSKY5),
    "Cosmos": Family("CosmosT2IPredict2", "blocks", (2,), COSMOS),
    "Anima": Family("Anima", "blocks", (2,), ANIMA),
    "StableAudio": Family("StableAudio", "transformer.layers", ("context",), STABLE_AUDIO),
}
# The attention of Cosmos-Predict2 calls no patches in ComfyUI 0.27.0, so its layers are refused there.
_HOOKED = "transformer_options" in inspect.signature(comfy.ldm.cosmos.predict2.Attention.compute_qkv).parameters
COSMOS_READ = ["Cosmos"] if _HOOKED else []
READ = [name for name in FAMILIES if _HOOKED or name not in ("Cosmos", "Anima")]


def build(family: str, seed: int = 0):
    """A MODEL of one of `FAMILIES`."""
    chosen = FAMILIES[family]
    if family not in ("Anima", "StableAudio"):
        return tiny_networks.build(chosen.name, seed, chosen.config)
    supported = getattr(comfy.supported_models, chosen.name)({**chosen.config, "dtype": torch.float32})
    weights = {}
    if family == "StableAudio":
        for which in ("start", "total"):
            embedder = comfy.ldm.audio.embedders.NumberConditioner(768, min_val=0, max_val=512).state_dict()
            weights |= {
                f"conditioner.conditioners.seconds_{which}.{key}": torch.ones_like(value)
                for key, value in embedder.items()
            }
    model = supported.get_model(weights, "")
    if family == "Anima":  # its real adapter has 150 M parameters
        model.diffusion_model.llm_adapter = comfy.ldm.anima.model.LLMAdapter(
            source_dim=24, target_dim=24, model_dim=24, num_layers=1, num_heads=2, dtype=torch.float32,
            operations=comfy.ops.disable_weight_init,
        )  # fmt: skip
    return tiny_networks.fill(model, seed)


def prompt(family: str, seed: int):
    """One CONDITIONING entry as the family's text encoder gives it: [context, options]."""
    g = torch.Generator().manual_seed(seed)
    context = torch.randn(1, 5, 768 if family == "StableAudio" else 24, generator=g)
    options = {"pooled_output": torch.randn(1, 8, generator=g)}
    mask = torch.ones(1, 5, dtype=torch.int64)
    mask[:, 2 + seed % 3 :] = 0
    if family == "LTXV":
        options["attention_mask"] = mask
    if family == "HunyuanDiT":
        t5_mask = torch.ones(1, 6, dtype=torch.int64)
        t5_mask[:, 3 + seed % 2 :] = 0
        options |= {
            "attention_mask": mask,
            "conditioning_mt5xl": torch.randn(1, 6, 16, generator=g),
            "attention_mask_mt5xl": t5_mask,
        }
    if family == "Anima":
        options |= {
            "t5xxl_ids": torch.randint(0, 32128, (7,), generator=g),
            "t5xxl_weights": torch.rand(7, generator=g) + 0.5,
        }
    return [context, options]


def noisy(family: str, model, batch: int = 1) -> torch.Tensor:
    """A random latent for the family."""
    if family == "StableAudio":
        return torch.randn(batch, 64, 32, generator=torch.Generator().manual_seed(0))
    return tiny_networks.noisy(model, batch=batch)


def predict(model, x, positive, negative=None, cfg=1.0):
    """The guider's denoised prediction for this x, out of the middle of a real sampling."""
    seen = []

    def one_evaluation(wrapped, noise, sigmas, extra_args, callback, disable):
        seen.append(wrapped(x, sigmas[0] * x.new_ones([x.shape[0]]), **extra_args))
        return seen[0]

    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    sampler = comfy.samplers.KSAMPLER(one_evaluation)
    with torch.inference_mode():
        guider.sample(
            torch.zeros_like(x), torch.zeros_like(x), sampler, torch.tensor([SIGMA, SIGMA / 2]), disable_pbar=True
        )
    return seen[0]


def blocks(family, model):
    return list(reduce(getattr, FAMILIES[family].blocks.split("."), model.model.diffusion_model))


def text_seen(family, model, x, entry, block):
    """The arguments with which this block is given its text when the whole network has one prompt."""
    seen = {}

    def record(module, args, kwargs):
        seen.update({key: args[key] if isinstance(key, int) else kwargs[key] for key in FAMILIES[family].text})

    handle = blocks(family, model)[block].register_forward_pre_hook(record, with_kwargs=True)
    predict(model, x, [entry])
    handle.remove()
    return {key: None if value is None else value.clone() for key, value in seen.items()}


def reference(family, model, x, base, entries):
    """The stock network on the base prompt, whose block i is handed by a PyTorch hook what it gets under prompt i."""
    seen = [text_seen(family, model, x, entry, i) for i, entry in enumerate(entries)]

    def replace(own):
        def run(module, args, kwargs):
            args = tuple(own.get(i, value) for i, value in enumerate(args))
            return args, {key: own.get(key, value) for key, value in kwargs.items()}

        return run

    handles = [
        block.register_forward_pre_hook(replace(own), with_kwargs=True)
        for block, own in zip(blocks(family, model), seen, strict=True)
    ]
    out = predict(model, x, [base])
    for handle in handles:
        handle.remove()
    return out


def alike(a, b):
    return (a - b).abs().max() <= 1e-5 * b.abs().max()
