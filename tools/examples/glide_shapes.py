"""The GLIDE examples that run on the small networks that come with the pack."""

from tools.examples.evidence import share
from tools.examples.glide import (
    add_both,
    add_edit,
    add_edits,
    add_latent,
    add_mask,
    add_picture,
    add_run,
    add_sampler,
    add_steps,
    add_text,
)
from tools.examples.parts import compare
from tools.examples.plan import Example, Ref

STEPS, CFG = "25", 3.0
NOISED_CLIP = "Shapes noised CLIP (comes with the pack)"
PAGE = "(docs/evidence/glide.md)"


def _note(what: str, attempt: str, often: str, ja: str) -> str:
    return f"### {what}\n**Try:** {attempt}\n\n**How often is it seen?** {often} {PAGE}.\n\n**試す:** {ja}"


def _right(row: str, column: str = "simple all") -> str:
    return share("glide", row, column)


def _model(example: Example, name: str, title: str, at: tuple[str, int]) -> Ref:
    file = f"Shapes GLIDE {name} (comes with the pack)"
    return example.node("GuidanceLab_GLIDELoader", title, at=at, size=(300, 0), file=file, precision="auto")


def text_to_image() -> Example:
    example = Example(
        "GLIDE text to image (Shapes)",
        _note(
            "64 pixels, then 128: all of GLIDE, small",
            "*cfg* of *64 pixels* 3 → 1 → 8; *steps* 25 → 10; another prompt, the same in both.",
            f"One thing is wholly right in {_right('CFG 3')} pictures, two or three in "
            f"{_right('CFG 3', 'complex all')}",
            "*cfg* を 3 → 1 → 8、*steps* を 25 → 10 に。プロンプトは両方同じに。",
        ),
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: 64 pixels", "#888888"),
            "with": ("3 with the upsampler: 128 pixels", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    prompt = "a blue dotted house on gray"
    base = _model(example, "base", "Base", ("models", 0))
    upsampler = _model(example, "upsampler", "Upsampler", ("models", 0))
    latent = add_latent(example, ("models", 0))
    positive = add_text(example, "Prompt", ("models", 0), base, prompt, 70)
    negative = add_text(example, "Negative (empty)", ("models", 0), base, "", 40)
    again = add_text(example, "Prompt for the upsampler", ("with", 0), upsampler, prompt)
    sampler, steps = (
        add_sampler(example, ("without", 0), "ancestral"),
        add_steps(example, ("without", 0), base, STEPS, "Steps"),
    )
    small = add_run(
        example, "64 pixels", ("without", 1), base[0], positive[0], negative[0], sampler[0], steps[0], latent[0], 1, CFG
    )
    decoded, plain = add_picture(example, ("without", 2), small, base, 8)
    upsample = example.node(
        "GuidanceLab_GLIDEUpsample", at=("with", 0), size=(270, 0), conditioning=again[0], image=decoded[0],
        width=128, height=128, temperature=0.997,
    )  # fmt: skip
    fast = add_steps(example, ("with", 0), upsampler, "fast27", "Steps")
    large = add_run(
        example, "128 pixels", ("with", 1), upsampler[0], upsample[0], upsample[0],
        add_sampler(example, ("with", 0), "ddim")[0], fast[0], upsample[1], 2, 1.0,
    )  # fmt: skip
    _, finished = add_picture(example, ("with", 1), large, upsampler, 4)
    compare(example, plain[0], finished[0], "glide_shapes", "64 pixels", "128 pixels", side=420, height=350)
    return example


def guided() -> Example:
    example = Example(
        "GLIDE with CLIP guidance (Shapes)",
        _note(
            "A CLIP guides GLIDE, without CFG",
            "*strength* 0.25 → 0 → 1; the text of the objective and the prompt apart.",
            f"One thing is wholly right in {_right('CFG 1')} pictures without, in "
            f"{_right('noise-aware CLIP 0.25')} with, in {_right('CFG 3')} with CFG 3 instead",
            "*strength* を 0.25 → 0 → 1 に。目標のテキストとプロンプトを別々に。",
        ),
    )
    prompt = "a cyan striped car on white"
    base = _model(example, "base", "Base", ("models", 0))
    positive = add_text(example, "Prompt", ("models", 0), base, prompt)
    latent = add_latent(example, ("models", 0))
    sampler = add_sampler(example, ("models", 0), "ancestral", width=300)
    steps = add_steps(example, ("models", 0), base, STEPS, "Steps", 300)
    objective = example.node(
        "GuidanceLab_ObjectiveNoisedCLIP", at=("with", 0), size=(280, 210), image_encoder=NOISED_CLIP,
        text_encoder=NOISED_CLIP, text=prompt, weight=1.0, looks_at="sample",
    )  # fmt: skip
    pulled = example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(280, 0), model=base[0], objective=objective[0],
        decoder="latent_rgb", strength=0.25, start_percent=0.0, end_percent=1.0, gradient="x0", blend="x0", every=1,
        crops=0, whole_view=True, seed=0, size_="rms",
    )  # fmt: skip
    add_both(example, base, pulled, positive, sampler, steps, latent, "glide_shapes_clip")
    return example


def inpainting() -> Example:
    example = Example(
        "GLIDE inpainting (Shapes)",
        _note(
            "One thing becomes another, the rest stays",
            "the *Prompt* of the change (the new thing alone); *x*, *y*, size of the mask; *cfg* 3 → 1.",
            f"One thing of a render of one to three drawn anew: all is right in "
            f"{_right('one thing named alone, CFG 3', 'all')} pictures, and in "
            f"{_right('one thing, whole caption, CFG 3', 'all')} where the prompt says the whole picture",
            "変更用の *Prompt* (新しいものだけを書きます)、マスクの位置と大きさ、*cfg* を 3 → 1 に。",
        ),
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: the picture", "#888888"),
            "with": ("3 with: a part anew", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    base = _model(example, "base", "Base", ("models", 0))
    inpainter = _model(example, "inpainting", "Inpainting", ("models", 0))
    latent = add_latent(example, ("models", 0))
    nothing = example.node("SolidMask", "Empty mask", at=("models", 0), size=(230, 0), value=0.0, width=64, height=64)
    draw = (
        add_sampler(example, ("models", 1), "ancestral", "Sampler of both", 270),
        add_steps(example, ("models", 1), base, STEPS, "Steps", 270),
    )
    empty = add_text(example, "Negative (empty)", ("models", 1), base, "", 50)
    nothing_said = add_text(example, "Negative of the change", ("models", 1), inpainter, "", 50)
    prompt = add_text(example, "Prompt", ("without", 0), base, "a purple car left of a purple car on sand")
    first = add_run(
        example, "Draw", ("without", 1), base[0], prompt[0], empty[0], draw[0][0], draw[1][0], latent[0], 1, CFG
    )
    picture, before = add_picture(example, ("without", 2), first, base, 8)
    mask = add_mask(example, ("with", 0), nothing, 32, 14, 30, 36)
    text = "a green star on sand"
    _, changed = add_edit(example, "with", 1, inpainter, text, nothing_said, picture[0], mask, draw, 2, CFG)
    _, after = add_picture(example, ("with", 3), changed, inpainter, 8)
    compare(example, before[0], after[0], "glide_shapes_inpaint", "before", "after", side=240)
    return example


def editing() -> Example:
    example = Example(
        "GLIDE iterative editing (Shapes)",
        _note(
            "Edit after edit: each draws a part of the picture before it",
            "the *Prompt* of an edit, or *x*, *y* and size of its mask. Later edits follow by themselves. "
            "Copy group 4 for a third one.",
            f"Three edits of a render of three things: all is right after the first in "
            f"{_right('edit 1 of 3, CFG 3', 'all')}, after the third in {_right('edit 3 of 3, CFG 3', 'all')} pictures",
            "各編集の *Prompt* やマスクの位置・大きさ。後の編集は自動的に続きます。",
        ),
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: two things", "#888888"),
            "edit0": ("3 a house on the right", "#b06634"), "edit1": ("4 a star on the left", "#b06634"),
            "compare": ("5 compare", "#88AA88"),
        },
        columns=[["models"], ["without", "edit0", "edit1"], ["compare"]],
    )  # fmt: skip
    base = _model(example, "base", "Base", ("models", 0))
    inpainter = _model(example, "inpainting", "Inpainting", ("models", 0))
    edits = (("a yellow house on sand", 32, 14, 30, 36), ("a red star on sand", 2, 14, 30, 36))
    start = "a purple car left of a purple car on sand"
    add_edits(example, base, inpainter, STEPS, start, edits, CFG, "glide_shapes_edits", "at first", 240)
    return example


MAKERS = [text_to_image, guided, inpainting, editing]
