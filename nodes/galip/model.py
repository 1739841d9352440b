"""A GALIP generator that ComfyUI's memory management loads and offloads: the value of a GUIDANCELAB_GALIP socket."""

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher

from ...galip import Dims, Generator
from ...galip.generator import GPU_MICRO_BATCH_SIZE
from .._api import io

CATEGORY = "Guidance Lab/GALIP"
GalipSocket = io.Custom("GUIDANCELAB_GALIP")


class Galip:
    """A generator in eval mode, in the precision of its weights. Nothing in it changes after it is made.

    `generator.dims` has the sizes: noise nz, sentence cond_dim, picture sizes[-1]. `name` is for messages and metadata.
    """

    def __init__(self, generator: Generator, name: str = "GALIP"):
        self.name = name
        # Not the dynamic patcher: it streams weights into comfy.ops layers, and these are plain torch layers.
        self.patcher = ModelPatcher(
            generator.eval().requires_grad_(False),
            load_device=comfy.model_management.get_torch_device(),
            offload_device=comfy.model_management.unet_offload_device(),
        )

    @property
    def generator(self) -> Generator:
        return self.patcher.model

    @property
    def dims(self) -> Dims:
        return self.generator.dims

    @property
    def dtype(self) -> torch.dtype:
        return self.generator.fc_code.weight.dtype

    def draw(self, noise: torch.Tensor, sentence: torch.Tensor) -> torch.Tensor:
        """Noise [B, nz] and sentence embeddings [B, cond_dim] -> IMAGE [B, H, W, 3] in 0..1, on ComfyUI's intermediate
        device.

        After every micro-batch progress is shown, and an interrupt ends it. ValueError when a picture is not finite.
        """
        bar = comfy.utils.ProgressBar(len(noise))

        def after_micro_batch(done: int, total: int) -> None:
            bar.update_absolute(done)
            comfy.model_management.throw_exception_if_processing_interrupted()

        memory = min(len(noise), GPU_MICRO_BATCH_SIZE) * memory_per_image(self.dims, self.dtype)
        comfy.model_management.load_models_gpu([self.patcher], memory_required=memory, force_full_load=True)
        with torch.inference_mode():
            image = self.generator(noise.float(), sentence.float(), callback=after_micro_batch)
        if not torch.isfinite(image).all():
            raise ValueError(
                f"{self.name} gives pictures that are not finite in {self.dtype}; load it with precision fp32 or bf16."
            )
        image = (image.clamp(-1, 1) + 1) / 2
        return image.movedim(1, -1).to(comfy.model_management.intermediate_device())


def memory_per_image(dims: Dims, dtype: torch.dtype) -> int:
    """Bytes of activations while one picture is computed: the widest block holds its input, two shortcuts and two
    hidden maps at once.
    """
    values = max(
        size**2 * (channels_in + 4 * channels_out)
        for (channels_in, channels_out), size in zip(dims.channels, dims.sizes)
    )
    return values * dtype.itemsize
