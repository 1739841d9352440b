"""The GALIP examples: on the shipped models, and with an official checkpoint."""

from tools.examples.evidence import share
from tools.examples.parts import compare, sample, show
from tools.examples.plan import Example, ModelFile, Ref
from tools.examples.sd15 import CHECKPOINT, HUB, line

CHECKPOINTS = "https://github.com/tobran/GALIP"
GENERATOR = ModelFile("galip/pre_cc12m.pth")
TEXT = ModelFile(
    "text_encoders/clip-vit-base-patch32.safetensors",
    f"{HUB}/openai/clip-vit-base-patch32/resolve/main/model.safetensors",
)
GET = [
    f"- `models/{GENERATOR.path}`: *CC12M* under [Pretrained model]({CHECKPOINTS})",
    f"- `models/{TEXT.path}`: [fetch]({TEXT.url}), saved under this name",
]
TWO = {"models": ("1 models", "#3f789e"), "with": ("2 draw", "#b06634"), "compare": ("3 look", "#88AA88")}
ENLARGE = {"upscale_method": "nearest-exact", "scale_by": 4}


def _figures() -> str:
    galip, simple, two = (
        share("galip", row, column)
        for row, column in (
            ("GALIP", "simple all"),
            ("diffusion CFG 2.0, 10 steps", "simple all"),
            ("GALIP", "complex all"),
        )
    )
    return (
        f"**How often is it right?** One thing: {galip} pictures in one pass, {simple} by diffusion with 10 guided "
        f"steps. "
        f"Two or three things: {two} only (docs/evidence/galip.md)."
    )


def _note(what: str, attempt: str, figures: str, ja: str, files: list[str] = ()) -> str:
    got = "\n".join(["\n\n**What to get**", *files]) if files else ""
    return f"### {what}\n**Try:** {attempt}\n\n{figures}{got}\n\n**試す:** {ja}"


def _official(example: Example, precision: str = "auto") -> tuple[Ref, Ref]:
    galip = example.node(
        "GuidanceLab_GALIPLoader", at=("models", 0), size=(270, 0), file=GENERATOR.name, precision=precision
    )
    clip = example.node("GuidanceLab_GALIPCLIP", at=("models", 0), size=(270, 0), galip=galip[0], file=TEXT.path)
    return galip, clip


NOT_COUNTED = (
    "**How often is it right?** Not counted with this checkpoint; the example with *(Shapes)* gives a toy's figure."
)


def text_shapes() -> Example:
    example = Example(
        "GALIP text to image (Shapes)",
        _note(
            "A picture in one pass",
            "*seed*; *truncation* 1 → 0.5 (more alike) → 0 (all the same); *batch_size* 4 → 16. "
            "The pictures on the left come from diffusion in 10 steps.", _figures(),
            "*truncation* を 1 → 0.5 → 0 に。左は 10 ステップの拡散です。",
        ),
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: diffusion, 10 steps", "#888888"),
            "with": ("3 with GALIP: one pass", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    models = example.node("GuidanceLab_ShapesDemoModels", at=("models", 0))
    text = example.node(
        "CLIPTextEncode", "Text", at=("models", 0), clip=models[1], text="a yellow striped house on black"
    )
    negative = example.node(
        "CLIPTextEncode", "Negative (empty)", at=("models", 0), size=(270, 60), clip=models[1], text=""
    )
    latent = example.node(
        "EmptyLatentImage", "128×128, 4 pictures", at=("models", 0), width=128, height=128, batch_size=4
    )
    drawn = sample(
        example, "10 steps", ("without", 0), models[0], text[0], negative[0], latent[0], seed=0, steps=10, cfg=2.0
    )
    decoded = example.node("VAEDecode", at=("without", 1), size=(220, 0), samples=drawn[0], vae=models[2])
    plain = example.node("ImageScaleBy", "4 times larger", at=("without", 1), image=decoded[0], **ENLARGE)
    galip = example.node(
        "GuidanceLab_GALIPSampler", at=("with", 0), galip=models[7], conditioning=text[0], seed=0, batch_size=4,
        truncation=1.0,
    )  # fmt: skip
    larger = example.node("ImageScaleBy", "4 times larger", at=("with", 1), image=galip[0], **ENLARGE)
    compare(example, plain[0], larger[0], "shapes_galip", "diffusion", "GALIP")
    return example


def interpolation_shapes() -> Example:
    example = Example(
        "GALIP interpolation (Shapes)",
        _note(
            "From one text to another, from one noise to another", "*steps* 4 → 8; *seeds* `0, 1, 2` → one number, or "
            "others; swap the two texts.", _figures(),
            "*steps* を 4 → 8、*seeds* を変える、2 つのテキストを入れ替える。",
        ),
        groups=dict(TWO), columns=[["models"], ["with"], ["compare"]],
    )  # fmt: skip
    models = example.node("GuidanceLab_ShapesDemoModels", at=("models", 0))
    texts = [
        example.node("CLIPTextEncode", title, at=("models", 0), clip=models[1], text=text)
        for title, text in (("From", "a red house on white"), ("To", "a blue star on sand"))
    ]
    walk = example.node(
        "GuidanceLab_GALIPInterpolate", at=("with", 0), size=(300, 0), galip=models[7], seeds="0, 1, 2", steps=4,
        layout="grid",
        text_path="lerp", noise_path="slerp", truncation=1.0, conditionings__conditioning0=texts[0][0],
        conditionings__conditioning1=texts[1][0],
    )  # fmt: skip
    larger = example.node(
        "ImageScaleBy", "2 times larger", at=("with", 0), size=(300, 0), image=walk[1], upscale_method="nearest-exact",
        scale_by=2,
    )  # fmt: skip
    show(example, ("compare", 0), larger[0], "Texts across, noises down", "shapes_galip", size=(640, 1080))
    example.card = {"whole": larger[0]}
    return example


def draft_shapes() -> Example:
    example = Example(
        "GALIP draft, finished by diffusion (Shapes)",
        _note(
            "A draft in one pass, finished by a few steps",
            "*denoise* of *Finish* 0.6 → 0.3 (nearer to the draft) → 0.9 (hardly the draft); another *seed* of the "
            "draft.",
            _figures() + " The two together were not counted.", "*denoise* を 0.6 → 0.3(下絵に近い)→ 0.9 に。",
        ),
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: the draft", "#888888"),
            "with": ("3 with: finished", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    models = example.node("GuidanceLab_ShapesDemoModels", at=("models", 0))
    text = example.node(
        "CLIPTextEncode", "Text", at=("models", 0), clip=models[1], text="a yellow striped house on black"
    )
    negative = example.node(
        "CLIPTextEncode", "Negative (empty)", at=("models", 0), size=(270, 60), clip=models[1], text=""
    )
    draft = example.node(
        "GuidanceLab_GALIPSampler", "Draft in one pass", at=("without", 0), galip=models[7], conditioning=text[0],
        seed=0,
        batch_size=4, truncation=1.0,
    )  # fmt: skip
    plain = example.node("ImageScaleBy", "4 times larger", at=("without", 1), image=draft[0], **ENLARGE)
    encoded = example.node("VAEEncode", at=("with", 0), size=(200, 0), pixels=draft[0], vae=models[2])
    finished = sample(
        example, "Finish", ("with", 1), models[0], text[0], negative[0], encoded[0], seed=0, cfg=3.0,
        sampler_name="euler",
        scheduler="normal", denoise=0.6,
    )  # fmt: skip
    decoded = example.node("VAEDecode", at=("with", 1), size=(220, 0), samples=finished[0], vae=models[2])
    larger = example.node("ImageScaleBy", "4 times larger", at=("with", 1), image=decoded[0], **ENLARGE)
    compare(example, plain[0], larger[0], "shapes_galip_refined", "draft", "finished")
    return example


def text_official() -> Example:
    example = Example(
        "GALIP text to image, upscaled",
        _note(
            "A picture in one pass, 224 pixels, then upscaled",
            "*seed*; *truncation* 1 → 0.7 (cleaner, more alike); an upscale model in place of "
            "*Lanczos*.", NOT_COUNTED, "*truncation* を 1 → 0.7 に。", GET,
        ),
        files=[GENERATOR, TEXT], needs="needs GALIP", groups=dict(TWO), columns=[["models"], ["with"], ["compare"]],
    )  # fmt: skip
    galip, clip = _official(example)
    text = example.node(
        "CLIPTextEncode", "Text", at=("models", 1), clip=clip[0],
        text="a red vintage car parked in front of a mountain lake at sunset",
    )  # fmt: skip
    drawn = example.node(
        "GuidanceLab_GALIPSampler",
        at=("with", 0),
        galip=galip[0],
        conditioning=text[0],
        seed=0,
        batch_size=4,
        truncation=1.0,
    )
    larger = example.node(
        "ImageScaleBy", "Lanczos, 4 times larger", at=("with", 1), image=drawn[0], upscale_method="lanczos", scale_by=4
    )
    show(example, ("compare", 0), drawn[0], "224×224, as drawn", size=(530, 590))
    show(example, ("compare", 1), larger[0], "896×896", "galip", size=(530, 590))
    return example


def interpolation_official() -> Example:
    example = Example(
        "GALIP interpolation",
        _note(
            "From one text to another, from one noise to another", "*steps* 4 → 8; *layout* grid → loop, into a video "
            "node; other *seeds*.", NOT_COUNTED, "*steps* を 4 → 8、*seeds* を変える。", GET,
        ),
        files=[GENERATOR, TEXT], needs="needs GALIP", groups=dict(TWO), columns=[["models"], ["with"], ["compare"]],
    )  # fmt: skip
    galip, clip = _official(example)
    texts = [
        example.node("CLIPTextEncode", title, at=("models", 1), clip=clip[0], text=text)
        for title, text in (("From", "a green meadow in spring"), ("To", "a snowy meadow in winter"))
    ]
    walk = example.node(
        "GuidanceLab_GALIPInterpolate", at=("with", 0), size=(300, 0), galip=galip[0], seeds="0, 1, 2", steps=4,
        layout="grid",
        text_path="lerp", noise_path="slerp", truncation=1.0, conditionings__conditioning0=texts[0][0],
        conditionings__conditioning1=texts[1][0],
    )  # fmt: skip
    show(example, ("compare", 0), walk[1], "Texts across, noises down", size=(640, 1080))
    return example


def draft_official() -> Example:
    text = "a red vintage car parked in front of a mountain lake at sunset"
    example = Example(
        "GALIP draft, finished by diffusion",
        _note(
            "A draft in one pass, finished by a few steps of SD1.5",
            "*denoise* of *Finish* 0.6 → 0.3 → 0.8; another *seed* of the "
            "draft.", NOT_COUNTED, "*denoise* を 0.6 → 0.3 → 0.8 に。", [line(CHECKPOINT), *GET],
        ),
        files=[GENERATOR, TEXT, CHECKPOINT], needs="needs GALIP and SD1.5",
        groups={
            "models": ("1 models", "#3f789e"), "without": ("2 without: the draft", "#888888"),
            "with": ("3 with: finished", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
    )  # fmt: skip
    galip, clip = _official(example)
    models = example.node("CheckpointLoaderSimple", at=("models", 0), ckpt_name=CHECKPOINT.name)
    words = example.node("CLIPTextEncode", "Text for the draft", at=("models", 1), clip=clip[0], text=text)
    positive = example.node("CLIPTextEncode", "The same text for SD1.5", at=("models", 1), clip=models[1], text=text)
    negative = example.node(
        "CLIPTextEncode", "Negative", at=("models", 1), size=(270, 60), clip=models[1], text="blurry, deformed"
    )
    draft = example.node(
        "GuidanceLab_GALIPSampler", "Draft in one pass", at=("without", 0), galip=galip[0], conditioning=words[0],
        seed=0,
        batch_size=1, truncation=0.9,
    )  # fmt: skip
    larger = example.node(
        "ImageScale", "224 to 512 pixels", at=("without", 1), size=(240, 0), image=draft[0],
        upscale_method="lanczos", width=512,
        height=512, crop="disabled",
    )  # fmt: skip
    encoded = example.node("VAEEncode", at=("with", 0), size=(200, 0), pixels=larger[0], vae=models[2])
    finished = sample(
        example, "Finish", ("with", 1), models[0], positive[0], negative[0], encoded[0], seed=0, cfg=6.0, denoise=0.6
    )
    decoded = example.node("VAEDecode", at=("with", 1), size=(200, 0), samples=finished[0], vae=models[2])
    compare(example, larger[0], decoded[0], "galip_refined", "draft", "finished")
    return example


def to_safetensors() -> Example:
    example = Example(
        "GALIP checkpoint to safetensors",
        _note(
            "An official checkpoint as a small safe file",
            "*precision* fp16 → fp32; then take the new file in *GALIP Loader*.",
            "The picture is there to check that the file was read rightly.", "*precision* を fp16 → fp32 に。", GET,
        ),
        files=[GENERATOR, TEXT], needs="needs GALIP", columns=[["models"], ["with"], ["compare"]],
        groups=TWO | {"with": ("2 save and draw", "#b06634")},
    )  # fmt: skip
    galip, clip = _official(example, "fp32")
    text = example.node("CLIPTextEncode", "Text", at=("models", 1), clip=clip[0], text="a lighthouse on a rocky coast")
    example.node(
        "GuidanceLab_GALIPSave", "Generator as safetensors", at=("with", 0), galip=galip[0],
        filename_prefix="galip/pre_cc12m",
        precision="fp16",
    )  # fmt: skip
    drawn = example.node(
        "GuidanceLab_GALIPSampler", "A picture to check it", at=("with", 0), galip=galip[0], conditioning=text[0],
        seed=0,
        batch_size=1, truncation=1.0,
    )  # fmt: skip
    larger = example.node(
        "ImageScaleBy", "3 times larger", at=("with", 1), image=drawn[0], upscale_method="lanczos", scale_by=3
    )
    show(example, ("compare", 0), larger[0], "Picture", size=(420, 440))
    return example


MAKERS = [
    text_shapes, interpolation_shapes, draft_shapes, text_official, interpolation_official, draft_official,
    to_safetensors,
]  # fmt: skip
