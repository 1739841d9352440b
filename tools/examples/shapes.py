"""The examples that run on the shipped models alone: autoguidance, CLIP guidance, captions."""

from tools.examples.evidence import share
from tools.examples.parts import compare, picture, sample, shapes, show, twins
from tools.examples.plan import GROUPS, Example

SAME = "Both start from the same noise. In Nodes 2.0, slide over **Compare Images**."
SAME_JA = "左右は同じノイズから始まります。"
CLIP_SETTINGS = {
    "decoder": "vae", "strength": 0.5, "start_percent": 0.2, "end_percent": 1.0, "gradient": "x0", "blend": "UPainting",
    "every": 1, "crops": 0, "whole_view": True, "seed": 0, "size_": "rms",
}  # fmt: skip


def autoguidance() -> Example:
    none, guided = (share("autoguidance", row, "complex all") for row in ("none", "ag early 2.0"))
    example = Example(
        "Autoguidance (Shapes)",
        "### A weaker version of the model as its guide\n"
        "**Try:** *weight* 2 → 1 (off) → 1.5 → 3 (too much). Then another *seed* in both samplers.\n\n"
        f"**How often is it seen?** Prompts with two or three things come out wholly right in {none} pictures without, "
        f"in {guided} with it (docs/evidence/autoguidance.md). {SAME}\n\n"
        f"**試す:** *weight* を 2 → 1(無効)→ 3(強すぎ)に。{SAME_JA}",
    )
    start = shapes(example, "a red striped car left of a blue house on sand")
    models = start["models"]
    pair = example.node(
        "GuidanceLab_AutoguidanceModelPair", at=("with", 0), model=models[0], guide_model=models[3], weight=2.0,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    twins(example, start, pair, "autoguidance", seed=1)
    return example


def weaker() -> Example:
    none, guided = (share("autoguidance", row, "simple all") for row in ("none", "weaker weight_blend 2.0"))
    shuffle = share("autoguidance", "weaker token_shuffle at 4×4 1.5", "simple all")
    example = Example(
        "Weaker version as a guide (Shapes)",
        "### No weaker model at hand? Make one\n"
        "**Try:** *method*: token_shuffle with *blocks* `input:4-5, output:6-8`; then *weight* 2 → 1.5.\n\n"
        f"**How often is it seen?** Pictures of one thing are wholly right in {none} without, in {guided} with "
        f"weight_blend, in {shuffle} with token_shuffle at weight 1.5 (docs/evidence/autoguidance.md). "
        "Most other methods do little in so small a model.\n\n"
        f"**試す:** *method* を token_shuffle に、*weight* を 2 → 1.5 に。{SAME_JA}",
    )
    start = shapes(example, "a purple lizard on white")
    models = start["models"]
    weaker = example.node(
        "GuidanceLab_WeakerVersion", at=("with", 0), model=models[0], method="weight_blend",
        method__base_model=models[3],
        method__amount=0.5,
    )  # fmt: skip
    pair = example.node(
        "GuidanceLab_AutoguidanceModelPair", at=("with", 0), model=models[0], guide_model=weaker[0], weight=2.0,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    twins(example, start, pair, "weaker_version", seed=3)
    return example


def trace() -> Example:
    cfg, both = (share("autoguidance", row, "complex all") for row in ("cfg 2.0", "cfg 2.0 + ag early 1.5"))
    example = Example(
        "CFG and autoguidance with a trace (Shapes)",
        "### What did each guidance do, step by step?\n"
        "**Try:** run it, then point at a step of the plot. *weight* 1.5 → 3 and run again: the run before stays, "
        "dashed.\n\n"
        f"**How often is it seen?** Prompts with two or three things are wholly right in {cfg} pictures with CFG 2 "
        f"alone, in {both} with autoguidance beside it (docs/evidence/autoguidance.md).\n\n"
        "**試す:** 実行してグラフのステップを指す。*weight* を 1.5 → 3 にして再実行(前回は破線)。",
    )
    start = shapes(example, "a green dotted house above a yellow star on gray")
    models = start["models"]
    pair = example.node(
        "GuidanceLab_AutoguidanceModelPair", at=("with", 0), model=models[0], guide_model=models[3], weight=1.5,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    traced = example.node("GuidanceLab_GuidanceTrace", at=("with", 1), size=(270, 110), model=pair[0])
    _traced_twins(example, start, traced, "With CFG 2 and autoguidance", "CFG 2 alone", "cfg_and_autoguidance", seed=7)
    return example


def _traced_twins(example: Example, start, traced, title, plain_title, save, **settings) -> None:
    """Like `twins`, with the trace of the guided run in the comparison."""
    models, settings = start["models"], {"cfg": 2.0, "steps": 16} | settings
    shared = (start["prompt"][0], start["negative"][0], start["latent"][0])
    plain = sample(example, plain_title, ("without", 0), models[0], *shared, **settings)
    guided = sample(example, title, ("with", 1), traced[0], *shared, **settings)
    before = picture(example, ("without", 1), plain[0], models[2])
    after = picture(example, ("with", 1), guided[0], models[2])
    compare(example, before[0], after[0], save, plain_title, "with")
    _plot(example, traced, guided)


def _plot(example: Example, traced, sampled) -> None:
    example.node("GuidanceLab_GuidanceTracePlot", at=("compare", 1), size=(430, 530), trace=traced[1], after=sampled[0])


CLIP_TRY = "**Try:** *strength* 0.5 → 0.1 → 1 → −0.5 (the wrong way); *gradient* x0 → through model."
CLIP_TRY_JA = "**試す:** *strength* を 0.5 → 0.1 → 1 → −0.5(逆向き)に。"


def _clip_figures() -> str:
    none, clip, cfg, cfg_clip = (
        share("clip", row, "complex all") for row in ("none", "clip 0.5 without cfg", "cfg 2", "cfg 2 + clip 0.5")
    )
    return (
        f"**How often is it seen?** Without CFG it brings wholly right pictures of two or three things from {none} to "
        f"{clip}. CFG 2 alone reaches {cfg}, and with both it is {cfg_clip}: here CLIP guidance polishes, it adds no "
        "missing thing (docs/evidence/clip.md)."
    )


def clip_trace() -> Example:
    prompt = "a red striped cube left of a blue ball on white"
    example = Example(
        "CLIP guidance patch with a trace (Shapes)",
        "### A CLIP looks at the half-finished picture\n" + CLIP_TRY + "\n\n" + _clip_figures() + "\n\n"
        "Point at a step of the plot: is the push larger than CFG's, does it pull against it?\n\n" + CLIP_TRY_JA,
    )
    start = shapes(example, prompt)
    models = start["models"]
    objective = example.node(
        "GuidanceLab_ObjectiveCLIPText", at=("with", 0), size=(270, 190), scorer=models[5], text=prompt, weight=1.0,
        similarity="cosine",
    )  # fmt: skip
    guided = example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(270, 0), model=models[0], objective=objective[0],
        decoder__vae=models[2], **CLIP_SETTINGS,
    )  # fmt: skip
    trace = example.node("GuidanceLab_GuidanceTrace", at=("with", 0), size=(270, 110), model=guided[0])
    models_settings = {"cfg": 1.0, "steps": 16, "seed": 5}
    shared = (start["prompt"][0], start["negative"][0], start["latent"][0])
    plain = sample(example, "Without", ("without", 0), models[0], *shared, **models_settings)
    sampled = sample(example, "With", ("with", 2), trace[0], *shared, **models_settings)
    before = picture(example, ("without", 1), plain[0], models[2])
    after = picture(example, ("with", 2), sampled[0], models[2])
    compare(example, before[0], after[0], "clip_guidance")
    _plot(example, trace, sampled)
    return example


def clip_text_and_picture() -> Example:
    prompt = "a red striped cube left of a blue ball on white"
    example = Example(
        "CLIP guidance by text and picture (Shapes)",
        columns=[["models", "reference"], ["without", "with"], ["compare"]],
        groups=GROUPS | {"reference": ("a picture to refer to", "#a1309b")},
        note_at=("below", "reference"),
        note=(
        "### Two objectives at once: a text and a reference picture\n"
        "**Try:** *weight* of *CLIP Image* 0.5 → 2: colours of the reference come in; 0: the text alone. Or put your "
        "own picture there with *Load Image*.\n\n"
        + _clip_figures() + " The mix of text and picture was not counted."
        + "\n\n**試す:** *CLIP Image* の *weight* を 0.5 → 2(参照画像の色が入る)→ 0(テキストだけ)に。"),
    )  # fmt: skip
    start = shapes(example, prompt, pictures=1)
    for key in ("prompt", "negative"):
        example.places[start[key].id].column = 1
    models = start["models"]
    other = example.node(
        "CLIPTextEncode", "Prompt of the reference", at=("models", 1), size=(270, 70), clip=models[1],
        text="a yellow star on black",
    )  # fmt: skip
    drawn = sample(
        example, "Draws the reference", ("reference", 0), models[0], other[0], start["negative"][0], start["latent"][0],
        seed=3, cfg=3.0, sampler_name="euler", scheduler="normal",
    )  # fmt: skip
    reference = example.node("VAEDecode", at=("reference", 1), size=(220, 0), samples=drawn[0], vae=models[2])
    show(example, ("reference", 1), reference[0], "The reference", size=(220, 262))
    text = example.node(
        "GuidanceLab_ObjectiveCLIPText", at=("with", 0), size=(270, 160), scorer=models[5], text=prompt, weight=1.0,
        similarity="cosine",
    )  # fmt: skip
    image = example.node(
        "GuidanceLab_ObjectiveCLIPImage", at=("with", 0), size=(270, 0), scorer=models[5], image=reference[0],
        weight=0.5,
        similarity="cosine", crop="center",
    )  # fmt: skip
    both = example.node(
        "GuidanceLab_ObjectiveCombine", at=("with", 0), size=(270, 190), weights="", objectives__objective0=text[0],
        objectives__objective1=image[0],
    )  # fmt: skip
    guided = example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(270, 0), model=models[0], objective=both[0],
        decoder__vae=models[2], **CLIP_SETTINGS,
    )  # fmt: skip
    twins(example, start, guided, "clip_guidance", first=2, seed=7, steps=16, side=400)
    return example


def upainting() -> Example:
    prompt = "a red striped cube left of a blue ball on white"
    example = Example(
        "UPainting CLIP Guider (Shapes)",
        "### CLIP guidance as a GUIDER, for SamplerCustomAdvanced\n" + CLIP_TRY + "\n\n" + _clip_figures()
        + "\n\n" + CLIP_TRY_JA,
    )  # fmt: skip
    start = shapes(example, prompt)
    models = start["models"]
    noise = example.node("RandomNoise", "Noise of both", at=("models", 1), size=(210, 0), noise_seed=7)
    sampler = example.node("KSamplerSelect", "Sampler of both", at=("models", 1), size=(270, 0), sampler_name="euler")
    steps = example.node(
        "BasicScheduler", "Steps of both", at=("models", 1), size=(270, 0), model=models[0], scheduler="normal",
        steps=16,
        denoise=1.0,
    )  # fmt: skip
    texts = {"positive": start["prompt"][0], "negative": start["negative"][0]}
    plain = example.node("CFGGuider", "Without", at=("without", 0), model=models[0], cfg=1.0, **texts)
    objective = example.node(
        "GuidanceLab_ObjectiveCLIPText", at=("with", 0), size=(270, 170), scorer=models[5], text=prompt, weight=1.0,
        similarity="cosine",
    )  # fmt: skip
    guider = example.node(
        "GuidanceLab_UPaintingCLIPGuider", at=("with", 1), size=(270, 0), model=models[0], objective=objective[0],
        cfg=1.0,
        decoder__vae=models[2], **texts, **CLIP_SETTINGS,
    )  # fmt: skip
    both = {"noise": noise[0], "sampler": sampler[0], "sigmas": steps[0], "latent_image": start["latent"][0]}
    before = example.node("SamplerCustomAdvanced", at=("without", 1), size=(230, 0), guider=plain[0], **both)
    after = example.node("SamplerCustomAdvanced", at=("with", 2), size=(230, 0), guider=guider[0], **both)
    first = picture(example, ("without", 2), before[0], models[2])
    second = picture(example, ("with", 2), after[0], models[2])
    compare(example, first[0], second[0], "upainting", side=420)
    return example


def likelihood() -> Example:
    prompt = "a green star above a yellow car on sand"
    rows = ("cfg 2", "likelihood 0.25, through the model")
    none, guided = (share("clip", row, "complex all", "**reported**") for row in rows)
    example = Example(
        "Caption likelihood (Shapes)",
        "### A captioner says how likely your prompt is for this picture\n"
        "**Try:** *strength* 0.25 → 1 (too much); *gradient* through model → x0 (cheaper); another *seed* in "
        "both samplers.\n\n"
        f"**How often is it seen?** Prompts with two or three things are wholly right in {none} with CFG 2, in "
        f"{guided} with it (docs/evidence/clip.md): 11 of 100 pictures come right, 5 are spoiled.\n\n"
        f"**試す:** *strength* を 0.25 → 1(強すぎ)、*seed* も変える。{SAME_JA}",
    )
    start = shapes(example, prompt)
    models = start["models"]
    objective = example.node(
        "GuidanceLab_ObjectiveCaptionLikelihood", at=("with", 0), size=(270, 200), captioner=models[6], text=prompt,
        weight=1.0, per="token", against="",
    )  # fmt: skip
    guided = example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(270, 0), model=models[0], objective=objective[0],
        decoder__vae=models[2], **(CLIP_SETTINGS | {"gradient": "through model", "strength": 0.25}),
    )  # fmt: skip
    twins(example, start, guided, "caption_likelihood", first=2, seed=1, steps=20, cfg=2.0)
    return example


def caption_residual() -> Example:
    prompt = "a blue house left of a purple cube and above a purple striped house on sand"
    cfg, half, whole = (
        share("clip", row, "complex all")
        for row in ("cfg 2", "cfg 2 + caption residual 0.5", "cfg 2 + caption residual 1")
    )
    example = Example(
        "Caption residual guidance (Shapes)",
        "### Away from what a captioner already sees too much of\n"
        "**Try:** *scale* 1 → 0.5 → 3 (breaks pictures); point at a step of the plot to read the caption of that "
        "moment.\n\n"
        "**How often is it seen?** Here the lower house turns from black to purple; on the whole it hardly helps: "
        f"prompts with two or three things are wholly right in {cfg} with "
        f"CFG 2, in {half} at scale 0.5, in {whole} at 1 (docs/evidence/clip.md).\n\n"
        "**試す:** *scale* を 1 → 0.5 → 3(崩れる)に。グラフのステップを指すとその時点の説明文が読めます。",
    )
    start = shapes(example, prompt)
    models = start["models"]
    guided = example.node(
        "GuidanceLab_CaptionResidualGuidance", at=("with", 0), size=(270, 0), model=models[0], clip=models[1],
        captioner=models[6], decoder="vae", decoder__vae=models[2], scale=1.0, every=1, start_percent=0.1,
        end_percent=1.0, prompt=prompt,
    )  # fmt: skip
    traced = example.node("GuidanceLab_GuidanceTrace", at=("with", 1), size=(270, 170), model=guided[0])
    _traced_twins(example, start, traced, "With caption guidance", "CFG 2 alone", "caption_residual", seed=7)
    return example


def guidance_compare() -> Example:
    rows = ("cfg 2.0", "cfg 2.0 + ag early 1.5")
    cfg, both = (share("autoguidance", row, "complex all") for row in rows)
    example = Example(
        "Guidance Compare (Shapes)",
        "### The same noise through several models, side by side\n"
        "**Try:** *weight* of the second pair 3 → 2; wire another guided MODEL into *model3*; a line of *labels* for "
        "each column.\n\n"
        f"**How often is it seen?** Prompts with two or three things are wholly right in {cfg} pictures with CFG 2 "
        f"alone, in {both} with autoguidance 1.5 beside it (docs/evidence/autoguidance.md). Weight 3 beside CFG is too "
        f"much.\n\n**試す:** 2 つ目の *weight* を 3 → 2 に。ガイダンスを付けた別のモデルを *model3* につなぐ。",
        groups={
            "models": GROUPS["models"], "with": ("2 with: what to compare", GROUPS["with"][1]),
            "compare": ("3 compare", GROUPS["compare"][1]),
        },
        columns=[["models"], ["with"], ["compare"]],
    )  # fmt: skip
    start = shapes(example, "a red striped car left of a blue house on sand", pictures=2)
    models = start["models"]
    pairs = [
        example.node(
            "GuidanceLab_AutoguidanceModelPair", f"Autoguidance {weight:g}", at=("with", 0), model=models[0],
            guide_model=models[3], weight=weight, start_percent=0.0, end_percent=1.0,
        )
        for weight in (1.5, 3.0)
    ]  # fmt: skip
    compared = example.node(
        "GuidanceLab_GuidanceCompare", at=("compare", 0), size=(400, 800), seed=1, steps=12, cfg=2.0,
        sampler_name="dpmpp_2m", scheduler="karras", denoise=1.0, labels="CFG 2 alone",
        latent_image=start["latent"][0], vae=models[2], positive=start["prompt"][0], negative=start["negative"][0],
        models__model1=models[0], models__model2=pairs[0][0], models__model3=pairs[1][0],
    )  # fmt: skip
    show(example, ("compare", 1), compared[1], "the labelled sheet", size=(1000, 800))
    example.card = {"whole": compared[1]}
    return example


MAKERS = [
    autoguidance, weaker, trace, clip_trace, clip_text_and_picture, upainting, likelihood, caption_residual,
    guidance_compare,
]  # fmt: skip
