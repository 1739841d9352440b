"""A MODEL and its CLIP while input tokens are learned: loaded, differentiable, and left as they were.

with in_training(model, clip, captions) as network:
    contexts = network.encode(0, rows)                                   # gradients reach the rows
    prediction, scale = network.predict(clean, noise, levels, contexts)  # gradients reach the contexts
"""

from contextlib import contextmanager, nullcontext

import comfy.k_diffusion.sampling
import comfy.model_management
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import comfy.sd
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_patcher import ModelPatcher, create_model_options_clone

from ...xti.layers import LayerTable
from ...xti.losses import velocity_scale
from ..host.blocks import is_unet
from ..host.gradient import differentiable_weights
from .checkpointing import checkpointed
from .cross_attention import at_unet_layers, layer_table
from .encode_texts import tokenize_with
from .learned_tokens import Tokens, caption_tokens, clip_widths, with_rows

PREVIEW_STEPS = 12
# How x0 comes from the network's output, for which the loss is known; LCM and X0 inherit from EPS and differ in this.
_PREDICTIONS = [
    kind.calculate_denoised
    for kind in (comfy.model_sampling.EPS, comfy.model_sampling.V_PREDICTION, comfy.model_sampling.EDM)
]


def trainable_table(model: ModelPatcher) -> LayerTable:
    """The layers that an XTI of this MODEL has. ValueError, with the reason, where it cannot be trained."""
    table = layer_table(model)
    sampling = model.get_model_object("model_sampling")
    if not is_unet(model.get_model_object("diffusion_model")):
        raise ValueError(
            f"XTI Train works with the U-nets of SD1, SD2 and SDXL; {table.architecture} is a transformer."
        )
    if type(sampling).calculate_denoised not in _PREDICTIONS:
        raise ValueError("XTI Train works with models that predict eps or v, and this one predicts something else.")
    return table


class TokenNetwork:
    """What `xti.training.Trainer` needs of a MODEL and a CLIP. Valid inside `in_training`."""

    def __init__(
        self,
        patcher: ModelPatcher,
        encoder: ModelPatcher,
        table: LayerTable,
        captions: list[Tokens],
        widths: dict[str, int],
        empty: Tokens,
    ):
        self.empty = empty
        self.model, self.encoder = patcher.model, encoder.model
        self.captions, self.widths = captions, widths
        self.device, self.pooled = patcher.load_device, None
        self.layer_at = {layer.block: layer.index for layer in table.layers}
        self.innermost = table.inside_out()[0]
        self.sigmas = self.model.model_sampling.sigmas.clone().to(self.device)
        options = create_model_options_clone(patcher.model_options)
        comfy.sampler_helpers.prepare_model_patcher(
            patcher, {}, options
        )  # puts the wrappers of the MODEL into its options
        # Fast attention kernels (sage, flash) have no backward pass.
        attention = {"optimized_attention_override": lambda _, *args, **kwargs: attention_pytorch(*args, **kwargs)}
        self.options = {
            **options["transformer_options"],
            **attention,
            "cond_or_uncond": [0],
            "sample_sigmas": self.sigmas.flip(0),
        }

    def encode(self, caption: int, rows: list[torch.Tensor]) -> torch.Tensor:
        """Contexts [layers, T, D] of a caption with the vectors [n, width] of every layer in it: one batch for all
        layers.
        """
        # The host gives the pooled text of the first one, and that is to be the innermost layer's, as in XTI Prompt.
        turn = self.innermost if len(rows) > 1 else 0
        tokens = with_rows(self.captions[caption], rows[turn:] + rows[:turn], self.widths)
        context, pooled = self.encoder.encode_token_weights(tokens)[:2]
        self.pooled = (
            None if pooled is None else pooled.detach()
        )  # one for the whole U-net: an XTI does not learn by it
        return context.reshape(len(rows), -1, context.shape[-1]).roll(turn, 0)

    def predict(
        self, clean: torch.Tensor, noise: torch.Tensor, levels: torch.Tensor, contexts: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x0 prediction [B, ...] from `clean` (in the model's scale) with noise at the levels (indices of its sigmas),
        and its scale.
        """
        sampling, sigma = self.model.model_sampling, self.sigmas[levels.to(self.device)]
        x = sampling.noise_scaling(sigma, noise.to(self.device), clean.to(self.device))
        velocity = isinstance(sampling, comfy.model_sampling.V_PREDICTION)
        return self.denoise(x, sigma, contexts), velocity_scale(sigma, sampling.sigma_data) if velocity else sigma

    def denoise(self, x: torch.Tensor, sigma: torch.Tensor, contexts: torch.Tensor) -> torch.Tensor:
        """x0 prediction [B, ...] with the same contexts [L, T, D], or [1, T, D] for all layers, for every picture of
        the batch.
        """
        contexts = contexts.to(self.device, self.model.get_dtype_inference())
        options = {**self.options, "sigmas": sigma}
        if len(contexts) > 1:
            options = at_unet_layers(
                options, lambda block, depth, base: contexts[self.layer_at[block]].expand(len(base), -1, -1)
            )
        base = contexts[:1].expand(len(x), -1, -1)
        return self.model.apply_model(x, sigma, c_crossattn=base, transformer_options=options, **self._inputs(x))

    def _inputs(self, x: torch.Tensor) -> dict:
        """What the model takes besides the context: SDXL's pooled text and sizes, an inpainting model's empty mask."""
        conds = self.model.extra_conds(
            noise=x, latent_image=torch.zeros_like(x), device=self.device, pooled_output=self.pooled,
            width=x.shape[-1] * 8,
            height=x.shape[-2] * 8, prompt_type="positive",
        )  # fmt: skip
        return {name: cond.process_cond(batch_size=len(x), area=None).cond for name, cond in conds.items()}

    @torch.no_grad()
    def sample(self, caption: int, rows: list[torch.Tensor], noise: torch.Tensor, cfg: float = 1.0) -> torch.Tensor:
        """What the tokens draw by now: a latent [1, ...] of the caption, from noise [1, ...].

        cfg: classifier-free guidance against the empty text; at 1, the default, there is none, at half the cost.
        """
        empty, empty_pooled = None, None
        if cfg != 1.0:
            text = with_rows(self.empty, rows[:1], self.widths)
            empty, empty_pooled = self.encoder.encode_token_weights(text)[:2]
        contexts = self.encode(caption, rows)
        own_pooled = self.pooled

        def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            self.pooled = own_pooled
            cond = self.denoise(x, sigma, contexts)
            if empty is None:
                return cond
            self.pooled = empty_pooled
            uncond = self.denoise(x, sigma, empty)
            return uncond + cfg * (cond - uncond)

        sigmas = comfy.samplers.calculate_sigmas(self.model.model_sampling, "karras", PREVIEW_STEPS).to(self.device)
        x = comfy.k_diffusion.sampling.sample_dpmpp_2m(
            denoiser, sigmas[0] * noise.to(self.device), sigmas, disable=True
        )
        return self.model.process_latent_out(x)


def _copy_input(module: torch.nn.LayerNorm, given: tuple) -> tuple:
    """ComfyUI's CLIP layers add in place to what their norms have read, and the backward pass needs that as it was."""
    return (given[0].clone(), *given[1:])


def _resident(patcher: ModelPatcher) -> ModelPatcher:
    """The patcher, or one whose weights stay where they are: the backward pass needs those of the forward pass."""
    return patcher.get_non_dynamic_delegate() if patcher.is_dynamic() else patcher


@contextmanager
def in_training(
    model: ModelPatcher, clip: comfy.sd.CLIP, captions: list[str], vectors: int, checkpointing: bool = False
):
    """Loads both and gives their `TokenNetwork`; weights, options and gradients are as before afterwards, also after an
    error.

    captions: texts with `{}` for the `vectors` learned vectors. checkpointing: see checkpointing.py. Enter it outside
    of inference mode.
    """
    table, widths = trainable_table(model), clip_widths(clip)
    tokens = [caption_tokens(clip, caption, vectors) for caption in captions]
    patcher, encoder = _resident(model), _resident(clip.patcher)
    # As core's training does: everything else makes room, and nothing is streamed in piece by piece.
    comfy.model_management.load_models_gpu([patcher, encoder], memory_required=1e20, force_full_load=True)
    text = encoder.model
    hooks = [
        norm.register_forward_pre_hook(_copy_input) for norm in text.modules() if isinstance(norm, torch.nn.LayerNorm)
    ]
    try:
        patcher.pre_run()
        text.reset_clip_options()
        if clip.layer_idx is not None:
            text.set_clip_options({"layer": clip.layer_idx})
        text.set_clip_options({"execution_device": encoder.load_device})
        saving = checkpointed(patcher.model.diffusion_model) if checkpointing else nullcontext()
        empty = tokenize_with(clip, "", lambda encoder, name: None)
        with differentiable_weights([patcher, encoder]), saving:
            yield TokenNetwork(patcher, encoder, table, tokens, widths, empty)
    finally:
        for hook in hooks:
            hook.remove()
        text.reset_clip_options()
        patcher.cleanup()
