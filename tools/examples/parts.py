"""What the examples share: the Shapes models with their prompts, a branch from sampler to picture, the comparison."""

from tools.examples.plan import Example, Ref

NEAREST = "nearest-exact"
SCALE = 4  # 128 pixels to 512
SIDE = 512  # of a result on the canvas, in units
FRAME = (18, 84)  # what a node that shows pictures needs beside and above them


def shapes(example: Example, prompt: str, pictures: int = 4, positive: bool = True) -> dict[str, Ref]:
    """The shipped models with prompt, empty negative and empty pictures: keys models, prompt, negative, latent."""
    models = example.node("GuidanceLab_ShapesDemoModels", at=("models", 0))
    found = {"models": models}
    if positive:
        found["prompt"] = example.node("CLIPTextEncode", "Prompt", at=("models", 0), clip=models[1], text=prompt)
    found["negative"] = example.node(
        "CLIPTextEncode", "Negative (empty)", at=("models", 0), size=(270, 60), clip=models[1], text=""
    )
    found["latent"] = example.node(
        "EmptyLatentImage", "128×128" + (f", {pictures} pictures" if pictures > 1 else ""), at=("models", 0),
        width=128, height=128, batch_size=pictures,
    )  # fmt: skip
    return found


def sample(example: Example, title: str, at: tuple[str, int], model, positive, negative, latent, **settings) -> Ref:
    """A KSampler with the settings of the evidence pages, unless `settings` say otherwise."""
    values = {"seed": 1, "steps": 12, "cfg": 1.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0}
    return example.node(
        "KSampler", title, at=at, model=model, positive=positive, negative=negative, latent_image=latent,
        **(values | settings),
    )  # fmt: skip


def picture(example: Example, at: tuple[str, int], samples, vae, scale: int = SCALE, width: int = 220) -> Ref:
    """Decode and enlarge by whole pixels. Returns the node whose output 0 is the picture to look at."""
    decoded = example.node("VAEDecode", at=at, size=(width, 0), samples=samples, vae=vae)
    return enlarge(example, at, decoded[0], scale, width) if scale > 1 else decoded


def enlarge(example: Example, at: tuple[str, int], image, scale: int = SCALE, width: int = 220) -> Ref:
    return example.node(
        "ImageScaleBy",
        f"{scale} times larger",
        at=at,
        size=(width, 0),
        image=image,
        upscale_method=NEAREST,
        scale_by=scale,
    )


def show(example: Example, at: tuple[str, int], images, title: str, save: str = "", size=None) -> Ref:
    if save:
        return example.node("SaveImage", title, at=at, size=size, images=images, filename_prefix=save)
    return example.node("PreviewImage", title, at=at, size=size, images=images)


def compare(
    example: Example,
    without,
    with_,
    save: str,
    left: str = "without",
    right: str = "with",
    side: int = SIDE,
    height: int = 400,
) -> None:
    """Both pictures side by side, `side` units large, and core's Compare Images, which shows them in Nodes 2.0 only,
    below the first. They are also those of the card.
    """
    example.card, example.card_labels = {"before": without, "after": with_}, (left, right)
    size = (side + FRAME[0], side + FRAME[1])
    show(example, ("compare", 0), without, left, size=size)
    show(example, ("compare", 1), with_, right, save, size=size)
    title = f"Compare Images: left {left}, right {right}"
    example.node("ImageCompare", title, at=("compare", 0), size=(size[0], height), image_a=without, image_b=with_)


def twins(example: Example, start: dict[str, Ref], model, save: str, positive=None, **settings) -> None:
    """Without and with, from the same noise: two samplers, two pictures, one comparison. `model` is a node whose
    output 0 is the guided MODEL; nodes of its group stand in column 0 (and 1 when `settings` has first=2).
    """
    first = settings.pop("first", 1)
    models = start["models"]
    vae = settings.pop("vae", models[2])
    labels = settings.pop("labels", ("without", "with"))
    scale, side = settings.pop("scale", SCALE), settings.pop("side", SIDE)
    shared = (start["negative"][0], start["latent"][0])
    plain = sample(
        example, "Without", ("without", 0), settings.pop("plain", models[0]), start["prompt"][0], *shared, **settings
    )
    guided = sample(example, "With", ("with", first), model[0], positive or start["prompt"][0], *shared, **settings)
    before = picture(example, ("without", 1), plain[0], vae, scale)
    after = picture(example, ("with", first), guided[0], vae, scale)
    compare(example, before[0], after[0], save, *labels, side=side)
