"""The GLIDE examples; they need its official files."""

from tools.examples.parts import compare, show
from tools.examples.plan import Example, ModelFile, Ref
from tools.examples.sd15 import GLIDE, NOISED_CLIP, line

FILES = {
    name: ModelFile(f"diffusion_models/{name}.pt", f"{GLIDE}/{name}.pt")
    for name in ("base", "upsample", "base_inpaint", "upsample_inpaint")
}
NOT_COUNTED = "**How often is it seen?** Not counted with these models."
ENLARGE = {"upscale_method": "nearest-exact"}


def _example(name: str, what: str, attempt: str, ja: str, files: list[ModelFile], **more) -> Example:
    listed = "\n".join(["**What to get**", *map(line, files)])
    note = f"### {what}\n**Try:** {attempt}\n\n{NOT_COUNTED}\n\n{listed}\n\n**試す:** {ja}"
    return Example(name, note, files=files, needs="needs GLIDE", **({"note_at": ("below", "compare")} | more))


def _model(example: Example, name: str, title: str, at: tuple[str, int]) -> Ref:
    return example.node("GuidanceLab_GLIDELoader", title, at=at, size=(230, 0), file=f"{name}.pt", precision="auto")


def add_text(example: Example, title: str, at: tuple[str, int], model: Ref, text: str, height: int = 80) -> Ref:
    return example.node("CLIPTextEncode", title, at=at, size=(270, height), clip=model[1], text=text)


def add_run(
    example: Example, title: str, at, model, positive, negative, sampler, sigmas, latent, seed: int, cfg: float
) -> Ref:
    return example.node(
        "SamplerCustom", title, at=at, size=(260, 0), model=model, add_noise=True, noise_seed=seed, cfg=cfg,
        positive=positive, negative=negative, sampler=sampler, sigmas=sigmas, latent_image=latent,
    )  # fmt: skip


def add_latent(example: Example, at: tuple[str, int]) -> Ref:
    return example.node(
        "EmptyChromaRadianceLatentImage", "64×64", at=at, size=(230, 0), width=64, height=64, batch_size=1
    )


def add_steps(example: Example, at: tuple[str, int], model: Ref, steps: str, title: str, width: int = 230) -> Ref:
    return example.node(
        "GuidanceLab_GLIDEScheduler", title, at=at, size=(width, 0), model=model[0], steps=steps, denoise=1.0
    )


def add_sampler(example: Example, at: tuple[str, int], method: str, title: str = "", width: int = 230) -> Ref:
    more = {"method__eta": 0.0} if method == "ddim" else {}
    return example.node("GuidanceLab_GLIDESampler", title, at=at, size=(width, 0), method=method, **more)


def add_picture(
    example: Example, at: tuple[str, int], samples: Ref, model: Ref, scale: int, width: int = 220
) -> tuple[Ref, Ref]:
    decoded = example.node("VAEDecode", at=at, size=(width, 0), samples=samples[0], vae=model[2])
    title = f"{scale} times larger"
    return decoded, example.node(
        "ImageScaleBy", title, at=at, size=(width, 0), image=decoded[0], scale_by=scale, **ENLARGE
    )


def text_to_image() -> Example:
    example = _example(
        "GLIDE text to image", "64 pixels, then 256: GLIDE whole",
        "*cfg* of *64 pixels* 3 → 1 → 6; *temperature* 0.997 → 1 (rougher); *steps* 100 → 27.",
        "*cfg* を 3 → 1 → 6、*temperature* を 0.997 → 1 に。", [FILES["base"], FILES["upsample"]],
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: 64 pixels", "#888888"),
            "with": ("3 with the upsampler: 256 pixels", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    prompt = "an oil painting of a corgi"
    base, upsampler = (
        _model(example, "base", "Base", ("models", 0)),
        _model(example, "upsample", "Upsampler", ("models", 0)),
    )
    latent = add_latent(example, ("models", 0))
    positive = add_text(example, "Prompt", ("models", 0), base, prompt)
    negative = add_text(example, "Negative (empty)", ("models", 0), base, "", 60)
    again = add_text(example, "Prompt for the upsampler", ("models", 0), upsampler, prompt)
    small = add_run(
        example, "64 pixels", ("without", 1), base[0], positive[0], negative[0],
        add_sampler(example, ("without", 0), "ancestral")[0],
        add_steps(example, ("without", 0), base, "100", "Steps")[0],
        latent[0],
        1, 3.0,
    )  # fmt: skip
    decoded, plain = add_picture(example, ("without", 2), small, base, 8)
    upsample = example.node(
        "GuidanceLab_GLIDEUpsample", at=("with", 0), size=(270, 0), conditioning=again[0], image=decoded[0],
        width=256, height=256,
        temperature=0.997,
    )  # fmt: skip
    large = add_run(
        example, "256 pixels", ("with", 1), upsampler[0], upsample[0], upsample[0],
        add_sampler(example, ("with", 0), "ddim")[0], add_steps(example, ("with", 0), upsampler, "fast27", "Steps")[0],
        upsample[1],
        2, 1.0,
    )  # fmt: skip
    _, finished = add_picture(example, ("with", 1), large, upsampler, 2)
    compare(example, plain[0], finished[0], "glide", "64 pixels", "256 pixels", side=420, height=350)
    return example


def add_both(
    example: Example, base: Ref, guided: Ref, positive: Ref, sampler: Ref, steps: Ref, latent: Ref, save: str
) -> None:
    """Draws without and with CLIP guidance, both without CFG, and compares."""
    both = (positive[0], positive[0], sampler[0], steps[0], latent[0], 1, 1.0)
    plain = add_run(example, "Without", ("without", 0), base[0], *both)
    steered = add_run(example, "With", ("with", 2), guided[0], *both)
    _, before = add_picture(example, ("without", 1), plain, base, 8)
    _, after = add_picture(example, ("with", 2), steered, base, 8)
    compare(example, before[0], after[0], save, side=420, height=350)


def own_clip() -> Example:
    prompt = "an oil painting of a corgi"
    example = _example(
        "GLIDE with its own CLIP guidance", "GLIDE guided by its own CLIP, without CFG",
        "*strength* 3 → 1 → 6; the text of the objective and the prompt apart.", "*strength* を 3 → 1 → 6 に。",
        [FILES["base"], *NOISED_CLIP],
    )  # fmt: skip
    base, latent = _model(example, "base", "Base", ("models", 0)), add_latent(example, ("models", 0))
    positive = add_text(example, "Prompt", ("models", 0), base, prompt)
    sampler = add_sampler(example, ("models", 0), "ancestral")
    steps = add_steps(example, ("models", 0), base, "100", "Steps", 270)
    objective = example.node(
        "GuidanceLab_ObjectiveNoisedCLIP", at=("with", 0), size=(280, 210), image_encoder="clip_image_enc.pt",
        text_encoder="clip_text_enc.pt", text=prompt, weight=1.0, looks_at="sample",
    )  # fmt: skip
    guided = example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(280, 0), model=base[0], objective=objective[0],
        decoder="latent_rgb", strength=3.0, start_percent=0.0, end_percent=1.0, gradient="x0", blend="UPainting",
        every=1,
        crops=0, whole_view=True, seed=0, size_="exact",
    )  # fmt: skip
    add_both(example, base, guided, positive, sampler, steps, latent, "glide_clip")
    return example


def add_mask(example: Example, at, nothing: Ref, x: int, y: int, width: int, height: int) -> Ref:
    part = example.node("SolidMask", "What to draw anew", at=at, size=(230, 0), value=1.0, width=width, height=height)
    return example.node(
        "MaskComposite",
        "Where",
        at=at,
        size=(230, 0),
        destination=nothing[0],
        source=part[0],
        x=x,
        y=y,
        operation="add",
    )


def add_edit(
    example: Example, group: str, column: int, inpainter: Ref, text: str, negative: Ref, image, mask: Ref, draw, seed,
    cfg: float,
):  # fmt: skip
    """Prompt and inpainting in `column`, the sampler in the next. Returns prompt's node, inpainting's and sampler's."""
    prompt = add_text(example, "Prompt", (group, column), inpainter, text)
    inpaint = example.node(
        "GuidanceLab_GLIDEInpaint", at=(group, column), size=(270, 0), positive=prompt[0], negative=negative[0],
        image=image, mask=mask[0], width=64, height=64,
    )  # fmt: skip
    sampled = add_run(
        example,
        "Draw",
        (group, column + 1),
        inpainter[0],
        inpaint[0],
        inpaint[1],
        draw[0][0],
        draw[1][0],
        inpaint[2],
        seed,
        cfg,
    )
    return inpaint, sampled


def inpainting() -> Example:
    files = [FILES["base"], FILES["base_inpaint"], FILES["upsample_inpaint"]]
    example = _example(
        "GLIDE inpainting", "A part drawn anew, first at 64 pixels, then at 256",
        "the *Prompt* of the change; *x*, *y* and size of the mask (in 64 pixels); *cfg* 5 → 3.",
        "変更用の *Prompt*、マスクの位置と大きさ(64 ピクセル中)、*cfg* を 5 → 3 に。", files,
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: the picture", "#888888"),
            "with": ("3 with: a part anew, 64 pixels", "#b06634"), "large": ("4 the same at 256 pixels", "#a1309b"),
            "compare": ("5 compare", "#88AA88"),
        },
        columns=[["models"], ["without", "with", "large"], ["compare"]],
    )  # fmt: skip
    base = _model(example, "base", "Base", ("models", 0))
    inpainter = _model(example, "base_inpaint", "Inpainting", ("models", 0))
    upsampler = _model(example, "upsample_inpaint", "Upsampling inpainting", ("models", 0))
    nothing = example.node("SolidMask", "Empty mask", at=("models", 0), size=(230, 0), value=0.0, width=64, height=64)
    latent = add_latent(example, ("models", 0))
    draw = (
        add_sampler(example, ("models", 1), "ancestral", "Sampler of all", 270),
        add_steps(example, ("models", 1), base, "100", "Steps", 270),
    )
    empty = add_text(example, "Negative (empty)", ("models", 1), base, "", 50)
    nothing_said = add_text(example, "Negative of the change", ("models", 1), inpainter, "", 50)
    fast = add_steps(example, ("models", 1), upsampler, "fast27", "Steps at 256", 270)
    prompt = add_text(example, "Prompt", ("without", 0), base, "a corgi in a field")
    first = add_run(
        example, "Draw", ("without", 1), base[0], prompt[0], empty[0], draw[0][0], draw[1][0], latent[0], 1, 3.0
    )
    picture, before = add_picture(example, ("without", 2), first, base, 8)
    text = "a corgi wearing a red hat in a field"
    mask = add_mask(example, ("with", 0), nothing, 16, 0, 32, 24)
    inpaint, changed = add_edit(example, "with", 1, inpainter, text, nothing_said, picture[0], mask, draw, 2, 5.0)
    small = example.node("VAEDecode", at=("with", 3), size=(220, 0), samples=changed[0], vae=inpainter[2])
    show(example, ("with", 3), small[0], "64 pixels", size=(220, 210))
    again = add_text(example, "Prompt", ("large", 0), upsampler, text)
    source = example.node(
        "ImageScale", "The picture at 256", at=("large", 0), size=(270, 0), image=picture[0],
        upscale_method="bicubic", width=256, height=256,
        crop="disabled",
    )  # fmt: skip
    upsample = example.node(
        "GuidanceLab_GLIDEUpsample", at=("large", 1), size=(260, 0), conditioning=again[0], image=small[0],
        width=256, height=256,
        temperature=0.997,
    )  # fmt: skip
    both = example.node(
        "GuidanceLab_GLIDEInpaint", at=("large", 1), size=(260, 0), positive=upsample[0], negative=upsample[0],
        image=source[0],
        mask=inpaint[3], width=256, height=256,
    )  # fmt: skip
    large = add_run(example, "Draw", ("large", 2), upsampler[0], both[0], both[0], draw[0][0], fast[0], both[2], 3, 1.0)
    _, after = add_picture(example, ("large", 3), large, upsampler, 2)
    compare(example, before[0], after[0], "glide_inpaint", "before", "after", side=266)
    return example


def add_edits(
    example: Example, base: Ref, inpainter: Ref, steps: str, start: str, edits, cfg: float, save: str, label: str,
    side: int,
) -> None:  # fmt: skip
    """Draws `start` and then, each on the picture before it, the `edits` (text, x, y, width, height), and compares."""
    latent = add_latent(example, ("models", 0))
    nothing = example.node("SolidMask", "Empty mask", at=("models", 0), size=(230, 0), value=0.0, width=64, height=64)
    sampler = add_sampler(example, ("models", 1), "ancestral", "Sampler of all", 270)
    draw = (sampler, add_steps(example, ("models", 1), base, steps, "Steps", 270))
    prompt = add_text(example, "Prompt", ("models", 1), base, start)
    empty = add_text(example, "Negative (empty)", ("models", 1), base, "", 50)
    nothing_said = add_text(example, "Negative of the edits", ("models", 1), inpainter, "", 50)
    first = add_run(
        example, "Draw", ("without", 0), base[0], prompt[0], empty[0], draw[0][0], draw[1][0], latent[0], 1, 3.0
    )
    image, before = add_picture(example, ("without", 1), first, base, 8)
    for i, (text, *where) in enumerate(edits):
        group = f"edit{i}"
        mask = add_mask(example, (group, 0), nothing, *where)
        _, changed = add_edit(example, group, 1, inpainter, text, nothing_said, image[0], mask, draw, 10 + i, cfg)
        image, after = add_picture(example, (group, 3), changed, inpainter, 8)
        if i == 0:
            show(example, ("without", 2), after[0], "After the first edit", size=(250, 250))
    compare(example, before[0], after[0], save, label, "all edits", side=side)


def editing() -> Example:
    files = [FILES["base"], FILES["base_inpaint"]]
    example = _example(
        "GLIDE iterative editing", "Edit after edit: each draws a part of the picture before it",
        "the *Prompt* of an edit, or *x*, *y* and size of its mask (in 64 pixels). Later edits follow by themselves. "
        "Copy group 4 for a third one; *GLIDE text to image* shows how to come to 256 pixels.",
        "各編集の *Prompt* やマスクの位置・大きさ(64 ピクセル中)。後の編集は自動的に続きます。", files,
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: the empty room", "#888888"),
            "edit0": ("3 with a painting", "#b06634"), "edit1": ("4 and a table", "#b06634"),
            "compare": ("5 compare", "#88AA88"),
        },
        columns=[["models"], ["without", "edit0", "edit1"], ["compare"]],
    )  # fmt: skip
    base = _model(example, "base", "Base", ("models", 0))
    inpainter = _model(example, "base_inpaint", "Inpainting", ("models", 0))
    edits = (
        ("a cozy living room with a painting of a corgi on the wall", 20, 6, 24, 18),
        ("a round coffee table in front of a couch", 16, 40, 32, 20),
    )
    add_edits(example, base, inpainter, "100", "a cozy living room", edits, 5.0, "glide_edits", "the empty room", 266)
    return example


MAKERS = [text_to_image, own_clip, inpainting, editing]
