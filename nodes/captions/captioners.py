"""The value of a GUIDANCELAB_CAPTIONER socket: something that says what a picture shows, the same words for the same
picture every time.
"""

from collections.abc import Sequence
from functools import cached_property

import comfy.sd
import torch
from comfy.model_patcher import ModelPatcher

from .._api import io
from ..host.networks import as_patcher, dtype_of
from .likelihood import Likelihood
from .run_texts import loaded_clip

CaptionerSocket = io.Custom("GUIDANCELAB_CAPTIONER")


class Captioner:
    """Immutable. `models`: what has to be loaded on its device while it looks at pictures."""

    name: str = ""
    models: tuple[ModelPatcher, ...] = ()

    def caption(self, images: torch.Tensor) -> list[str]:
        """One line for each picture of [B, 3, H, W] (RGB; values outside 0..1 are clipped). `models` are loaded.

        Greedy decoding: the likeliest word every time, so no random number is drawn. No gradient.
        """
        raise NotImplementedError

    @property
    def likelihood(self) -> Likelihood:
        """How likely the captioner finds a given text, differentiable in the picture.

        ValueError, in one sentence, when it cannot say so.
        """
        raise ValueError(
            f"{self.name} only writes, and cannot say how likely a text is: choose the source 'folder' in Captioner "
            "Loader, with a BLIP, BLIP-2, GIT or Florence-2."
        )


class HeldNetwork(torch.nn.Module):
    """ComfyUI writes the device on a module that it loads; transformers has a property without a setter there."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network


class TransformersCaptioner(Captioner):
    """An image-to-text model of transformers with its processor (BLIP, BLIP-2, GIT, Florence-2).

    network: has `generate(pixel_values=...)`; it is frozen and handed to ComfyUI's memory management. processor:
    pictures to the network's input, token ids to words. `max_tokens`: longest caption. `task`: the text that the
    network is asked with, if it needs one.
    """

    def __init__(
        self,
        network: torch.nn.Module,
        processor,
        max_tokens: int = 40,
        task: str | None = None,
        name: str = "captioner",
    ):
        self.name, self.processor, self.max_tokens, self.task = name, processor, max_tokens, task
        self.models = (as_patcher(HeldNetwork(network)),)

    def caption(self, images: torch.Tensor) -> list[str]:
        patcher, network = self.models[0], self.models[0].model.network
        if patcher.loaded_size() < patcher.model_size():  # ComfyUI can stream weights into its own layers only
            raise RuntimeError(
                f"{self.name} does not fit into VRAM as a whole: use a smaller captioner, or a smaller picture or "
                f"batch."
            )
        pictures = list(images.float().clamp(0, 1).cpu())
        asked = {} if self.task is None else {"text": [self.task] * len(pictures)}
        inputs = self.processor(images=pictures, do_rescale=False, return_tensors="pt", **asked)
        device, dtype = patcher.load_device, dtype_of(network)
        given = {"pixel_values": inputs["pixel_values"].to(device, dtype)}
        given |= {key: inputs[key].to(device) for key in ("input_ids", "attention_mask") if asked}
        with torch.inference_mode():
            ids = network.generate(**given, max_new_tokens=self.max_tokens, num_beams=1, do_sample=False)
        return _lines(self.processor.batch_decode(ids, skip_special_tokens=True))

    @cached_property
    def likelihood(self) -> Likelihood:
        return Likelihood(self.name, self.models[0], self.processor, self.task)


class TextGeneratingClip(Captioner):
    """A vision-language text encoder of ComfyUI (Qwen3-VL, Gemma 3, Gemma 4, …) that is asked a question about each
    picture.
    """

    def __init__(self, clip: comfy.sd.CLIP, question: str, max_tokens: int = 40):
        """ValueError, in one sentence, when this CLIP cannot write, or not about pictures."""
        from comfy.text_encoders.llama import BaseGenerate

        if not any(isinstance(module, BaseGenerate) for module in clip.cond_stage_model.modules()):
            raise ValueError(
                "This CLIP cannot write text; connect a vision-language one (Qwen3-VL, Gemma 3 or 4), or choose the "
                "source 'folder'."
            )
        self.name, self.question, self.max_tokens = "text encoder", question, max_tokens
        self.models = (clip.patcher,)
        self.clip = loaded_clip(clip, clip.patcher)
        if not any(
            isinstance(token[0], dict)
            for rows in self._ask(torch.zeros(1, 3, 64, 64)).values()
            for row in rows
            for token in row
        ):
            raise ValueError(
                "This CLIP writes text but does not look at pictures; connect a vision-language one, or choose the "
                "source 'folder'."
            )

    def _ask(self, picture: torch.Tensor) -> dict:
        """Tokens of the question about one picture [1, 3, H, W], made as ComfyUI's TextGenerate node makes them."""
        return self.clip.tokenize(
            self.question, image=picture.movedim(1, -1), skip_template=False, min_length=1, thinking=False
        )

    def caption(self, images: torch.Tensor) -> list[str]:
        images = images.float().clamp(0, 1).cpu()
        written = []
        with torch.inference_mode():
            for picture in images.split(1):  # ComfyUI generates for one row at a time
                ids = self.clip.generate(self._ask(picture), do_sample=False, max_length=self.max_tokens)
                written.append(self.clip.decode(ids))
        return _lines(written)


def _lines(texts: Sequence[str]) -> list[str]:
    return [" ".join(text.split()) for text in texts]
