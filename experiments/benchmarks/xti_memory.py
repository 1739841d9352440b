"""Memory of an XTI training by count: weights, and what autograd keeps for the backward pass, with and without gradient
checkpointing.

Nothing is computed: the networks of full size run on PyTorch's meta device, in half precision, with an attention that
keeps queries, keys, values and its result, as the fused kernels of a GPU do. One picture at a time.
"""

import sys

import torch

GIB = 2**30
CLIPS = {
    "clip_l": dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072),
    "clip_g": dict(hidden_size=1280, num_hidden_layers=32, num_attention_heads=20, intermediate_size=5120),
}
# layout, latent side, text width, text encoders
CASES = {"SD1.5, 512": ("sd15", 64, 768, ("clip_l",)), "SDXL, 1024": ("sdxl", 128, 2048, ("clip_l", "clip_g"))}


class FusedAttention(torch.autograd.Function):
    """What a fused kernel keeps; its values do not matter here."""

    @staticmethod
    def forward(ctx, q, k, v):
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError


class Kept:
    """Bytes of the different tensors that autograd keeps, without weights."""

    def __init__(self, module: torch.nn.Module):
        self.weights = {weight.untyped_storage()._cdata for weight in module.parameters()}
        self.storages, self.bytes = {}, 0

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights and storage._cdata not in self.storages:
            self.storages[storage._cdata] = storage  # alive, so that no other gets its number
            self.bytes += storage.nbytes()
        return tensor

    def hooks(self):
        return torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)


def weight_bytes(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters()) * 2


def unet(layout: str, side: int, width: int) -> dict[str, int]:
    """Weights, activations without and with checkpointing, in bytes."""
    import comfy.ops
    from comfy.ldm.modules.attention import BasicTransformerBlock
    from comfy.ldm.modules.diffusionmodules.openaimodel import ResBlock, UNetModel

    from guidance_lab.experiments.benchmarks.autoguidance import LAYOUTS, UNET
    from guidance_lab.nodes.layers.checkpointing import checkpointed

    network = UNetModel(
        **UNET, **LAYOUTS[layout][0], device="meta", dtype=torch.float16, operations=comfy.ops.disable_weight_init
    ).requires_grad_(False)
    options = {"optimized_attention_override": lambda _, q, k, v, *args, **kwargs: FusedAttention.apply(q, k, v)}

    def run(kept: Kept) -> int:
        half = dict(dtype=torch.float16, device="meta")
        context = torch.empty(1, 77, width, **half, requires_grad=True)
        given = {"y": torch.empty(1, 2816, **half)} if layout == "sdxl" else {}
        picture, time = torch.empty(1, 4, side, side, **half), torch.empty(1, device="meta")
        with kept.hooks():
            network(picture, time, context, transformer_options=dict(options), **given)
        return kept.bytes

    kept, begins, largest = Kept(network), {}, [0]
    handles = []
    for module in network.modules():
        if isinstance(module, (ResBlock, BasicTransformerBlock)):
            handles.append(module.register_forward_pre_hook(lambda m, _: begins.update({id(m): kept.bytes})))
            handles.append(module.register_forward_hook(lambda m, *_: largest.append(kept.bytes - begins[id(m)])))
    full = run(kept)
    for handle in handles:
        handle.remove()
    with checkpointed(network):
        inputs = run(Kept(network))
    return {"weights": weight_bytes(network), "full": full, "checkpointed": inputs + max(largest)}


def text_encoder(name: str, prompts: int) -> dict[str, int]:
    """Weights, and what is kept of `prompts` texts of 77 tokens, which ComfyUI encodes in float32."""
    import comfy.ops
    from comfy.clip_model import CLIPTextModel

    from guidance_lab.nodes.layers.token_training import _copy_input

    shape = dict(
        max_position_embeddings=77, eos_token_id=49407, hidden_act="quick_gelu" if name == "clip_l" else "gelu"
    )
    network = CLIPTextModel({**CLIPS[name], **shape}, torch.float32, "meta", comfy.ops.disable_weight_init)
    network.requires_grad_(False)
    for module in network.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.register_forward_pre_hook(_copy_input)
    kept = Kept(network)
    with kept.hooks():
        embeds = torch.empty(prompts, 77, CLIPS[name]["hidden_size"], device="meta", requires_grad=True)
        network(embeds=embeds * 1, num_tokens=[77] * prompts)
    return {"weights": weight_bytes(network), "full": kept.bytes}


def rows() -> list[dict]:
    found = []
    for name, (layout, side, width, towers) in CASES.items():
        network, layers = unet(layout, side, width), {"sd15": 16, "sdxl": 11}[layout]
        texts = [text_encoder(tower, layers) for tower in towers]
        weights = network["weights"] + sum(text["weights"] for text in texts)
        text = sum(text["full"] for text in texts)
        for checkpointing in ("full", "checkpointed"):
            found.append(
                {
                    "case": name, "gradient_checkpointing": checkpointing != "full", "weights_gib": weights / GIB,
                    "unet_gib": network[checkpointing] / GIB, "text_gib": text / GIB,
                    "together_gib": (weights + network[checkpointing] + text) / GIB,
                }
            )  # fmt: skip
    return found


def main() -> None:
    from tools.report import arguments, write_report

    options = arguments(__doc__.splitlines()[0]).parse_args()
    found = rows()
    for row in found:
        print(
            "  ".join(
                f"{key} {value:.2f}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()
            )
        )
    ratios = {
        row["case"]: row["unet_gib"] / other["unet_gib"] for other, row in zip(found[::2], found[1::2], strict=True)
    }
    write_report(options.json, ratios, found)


if __name__ == "__main__":
    sys.exit(main())
