"""What the tests of caption residual guidance share: a captioner whose words the test chooses, and the formula done by
hand.
"""

from contextlib import contextmanager

import comfy.samplers
import torch

from guidance_lab.nodes.captions.captioners import Captioner

PROMPT, NEGATIVE = "a red cube on white", "a blue ball on black"
SAYS = "a green star on sand"
STEPS = 4


def guided(run_node, shapes, captioner, model=None, clip=None, **options):
    """The MODEL that the node gives for the Shapes models (MODEL, CLIP, …); every step is captioned unless told
    otherwise.
    """
    settings = {
        "decoder": {"decoder": "latent_rgb"},
        "scale": 1.5,
        "every": 1,
        "start_percent": 0.0,
        "end_percent": 1.0,
        **options,
    }
    node = "GuidanceLab_CaptionResidualGuidance"
    return run_node(node, model=model or shapes[0], clip=clip or shapes[1], captioner=captioner, **settings)[0]


class ChosenWords(Captioner):
    """Says `words[i][row]` at call i (the last ones from then on) and keeps the pictures that it was shown."""

    def __init__(self, *words: str | list[str], models=()):
        self.words = [[w] if isinstance(w, str) else w for w in words]
        self.models = models
        self.shown: list[torch.Tensor] = []

    def caption(self, images):
        self.shown.append(images.clone())
        lines = self.words[min(len(self.shown), len(self.words)) - 1]
        return [lines[row % len(lines)] for row in range(len(images))]


def encoded(clip, text: str, **options) -> list:
    """CONDITIONING of a text, with further options."""
    with torch.inference_mode():
        return [
            [context, {**given, **options}] for context, given in clip.encode_from_tokens_scheduled(clip.tokenize(text))
        ]


def together(clip, texts: list[str], **options) -> list:
    """CONDITIONING with texts[i] for picture i."""
    rows = [encoded(clip, text)[0] for text in texts]
    with torch.inference_mode():
        return [
            [
                torch.cat([row[0] for row in rows]),
                {"pooled_output": torch.cat([row[1]["pooled_output"] for row in rows]), **options},
            ]
        ]


class ByHand(comfy.samplers.CFGGuider):
    """D = CFG(C, U) - b (B - C), written without the pack: `plan` says which caption is in force from which step of the
    schedule on.

    plan: {step index: CONDITIONING or None}; between its steps the last one stays.
    """

    def __init__(self, model, positive, negative, cfg: float, scale: float, plan: dict):
        super().__init__(model)
        captions = {f"caption {index}": caption for index, caption in plan.items() if caption is not None}
        self.inner_set_conds({"positive": positive, "negative": negative, **captions})
        self.set_cfg(cfg)
        self.scale, self.plan = scale, plan

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        index = int((sigmas > timestep[0] * (1 + 1e-6)).sum())
        begun = [i for i in self.plan if i <= index]
        caption = self.conds.get(f"caption {max(begun)}") if begun else None
        negative = None if self.cfg == 1.0 else self.conds["negative"]
        asked = [self.conds["positive"], negative] + ([] if caption is None else [caption])
        c, u, *b = comfy.samplers.calc_cond_batch(self.inner_model, asked, x, timestep, model_options)
        cfg = u + (c - u) * self.cfg
        return cfg - self.scale * (b[0] - c) if b else cfg


@contextmanager
def counted_encodings(clip):
    """A list that grows by one entry for each run of the text transformer."""
    runs: list[int] = []
    transformer = clip.cond_stage_model.clip_l.transformer
    handle = transformer.register_forward_pre_hook(lambda module, args: runs.append(1))
    try:
        yield runs
    finally:
        handle.remove()
