"""The examples of prompts and learned words for each layer, on the shipped models."""

from tools.examples.evidence import share
from tools.examples.parts import compare, picture, sample, shapes, show, twins
from tools.examples.plan import Example, Ref

THREE = {
    "models": ("1 models", "#3f789e"),
    "without": ("2 without: one prompt everywhere", "#888888"),
    "with": ("3 with: each layer its own prompt", "#b06634"),
    "compare": ("4 compare", "#88AA88"),
}
DRAW = {"seed": 1, "cfg": 2.0}


def per_block_prompts() -> Example:
    apart, thing = share("perblock", "part down", "apart"), share("perblock", "part down", "one thing")
    example = Example(
        "Per-block prompts (Shapes)",
        "### Two prompts on one U: thing from one, background from the other\n"
        "**Try:** paint other cells with the chip. *up* in place of *down*: now the thing comes from the line. One "
        "cell, OUT08, is enough for a shape.\n\n"
        f"**How often is it seen?** With `down`, thing of one and background of the other prompt stand in {apart} "
        f"pictures, of {thing} that show one thing at all (docs/evidence/perblock.md).\n\n"
        "**試す:** チップで別のセルを塗る。*down* を *up* にすると物体がその行のプロンプトになります。",
        groups=dict(THREE),
    )
    start = shapes(example, "a red star on white")
    models = start["models"]
    layers = example.node(
        "GuidanceLab_PerBlockPrompt", "Thing from the text, background from the line", at=("with", 0), model=models[0],
        clip=models[1], text="a red star on white", layers="down: a green lizard on sand", controlnet="base prompt",
        pooled="base prompt", single_blocks=False,
    )  # fmt: skip
    twins(example, start, layers, "per_block", positive=layers[1], **DRAW)
    return example


def per_block_conditioning() -> Example:
    apart = share("perblock", "part up", "apart")
    example = Example(
        "Per-block conditioning (Shapes)",
        "### The same with CONDITIONINGs: any encoder, any node before it\n"
        "**Try:** paint *down* in place of *up*: now the background comes from A. Wire a third prompt: it becomes "
        "B.\n\n"
        f"**How often is it seen?** With `up: A`, thing of A on the background of the base stand in {apart} pictures "
        "(docs/evidence/perblock.md).\n\n"
        "**試す:** *up* の代わりに *down* を塗ると背景が A になります。3 つ目のプロンプトをつなぐと B になります。",
        groups=dict(THREE),
    )
    start = shapes(example, "a blue ball on sand")
    models = start["models"]
    other = example.node(
        "CLIPTextEncode", "Prompt A", at=("models", 0), size=(270, 70), clip=models[1], text="a yellow house on white"
    )
    layers = example.node(
        "GuidanceLab_PerBlockConditioning", "Background from the base, thing from A", at=("with", 0), model=models[0],
        base=start["prompt"][0], layers="up: A", single_blocks=False, conditionings__A=other[0],
    )  # fmt: skip
    twins(example, start, layers, "per_block", positive=layers[1], **DRAW)
    return example


def train_xti() -> Example:
    early, late = (share("xti", "XTI", column) for column in ("25", "500"))
    example = Example(
        "Train an XTI and use it (Shapes)",
        "### Learn a word from six pictures, a vector for each layer\n"
        "**Try:** *steps* 60 → 200; *init_word* cube → car; another text in *The new word in another place*. The first "
        "run takes a minute on a CPU.\n\n"
        "**How often is it seen?** Over three concepts (one of which is learned well, two hardly) shape, colour and "
        f"texture are right in {early} pictures after 25 steps and {late} after 500 (docs/evidence/xti.md). This car "
        "was not among them.\n\n"
        "**試す:** *steps* を 60 → 200、*init_word* を cube → car に。最初の実行は CPU で約 1 分です。",
        groups={
            "models": ("1 models and pictures to learn from", "#3f789e"), "learn": ("2 learn a word", "#a1309b"),
            "without": ("3 without: the word it began as", "#888888"), "with": ("4 with the new word", "#b06634"),
            "compare": ("5 compare", "#88AA88"),
        },
        columns=[["models"], ["learn"], ["without", "with"], ["compare"]],
        note_at=("below", "models"),
    )  # fmt: skip
    start = shapes(example, "a red dotted car on white", pictures=6)
    models = start["models"]
    few = example.node("EmptyLatentImage", "128×128, 4 pictures", at=("models", 0), width=128, height=128, batch_size=4)
    drawn = sample(
        example, "Draws what to learn from", ("models", 1), models[0], start["prompt"][0], start["negative"][0],
        start["latent"][0], seed=3, cfg=2.0,
    )  # fmt: skip
    trained = example.node(
        "GuidanceLab_XTITrain", "Learn them as a new word", at=("learn", 0), size=(270, 0), model=models[0],
        clip=models[1],
        vae=models[2], latents=drawn[0], captions="own lines", captions__lines="a {} on white", init_word="cube",
        vectors=1,
        steps=60, learning_rate=0.01, batch=4, regulariser="none", seed=0, shared=False, pictures_at_once=4,
        preview_every=20,
    )  # fmt: skip
    decoded = example.node("VAEDecode", at=("models", 1), size=(220, 0), samples=drawn[0], vae=models[2])
    show(example, ("models", 1), decoded[0], "What it learns from", size=(220, 260))
    example.node(
        "GuidanceLab_XTISave", "Keep the word for XTI Loader", at=("with", 0), size=(270, 0), xti=trained[0],
        filename_prefix="xti/my_car", dtype="float32",
    )  # fmt: skip
    _use_the_word(example, start, few, trained, "xti")
    return example


def _use_the_word(example: Example, start: dict[str, Ref], few: Ref, trained: Ref, save: str, column: int = 1) -> None:
    """The learned word beside the word it began as, in another place, from the same noise `few`. `column`: in which
    of its group the new word's latents become a picture.
    """
    models = start["models"]
    place = " above a green ball on sand"
    word = example.node(
        "GuidanceLab_XTIPrompt", "The new word in another place", at=("with", 0), size=(270, 0), model=models[0],
        clip=models[1], text="a xti:A" + place, tokens="", xtis__A=trained[0],
    )  # fmt: skip
    began = example.node(
        "CLIPTextEncode", "The word it began as", at=("without", 0), clip=models[1], text="a cube" + place
    )
    shared = (start["negative"][0], few[0])
    plain = sample(example, "Without", ("without", 1), models[0], began[0], *shared, seed=5, cfg=2.0)
    guided = sample(example, "With", ("with", 1), word[0], word[1], *shared, seed=5, cfg=2.0)
    before = picture(example, ("without", 0), plain[0], models[2])
    after = picture(example, ("with", column), guided[0], models[2])
    compare(example, before[0], after[0], save, "cube", "the new word", side=370)
    example.node(
        "GuidanceLab_XTIInfo", "What the word is like in each layer", at=("compare", 1), size=(388, 600),
        xti=trained[0], clip=models[1], words=5,
    )  # fmt: skip


def train_from_photos() -> Example:
    early, late = (share("xti", "XTI", column) for column in ("25", "500"))
    example = Example(
        "Train an XTI from photos (Shapes)",
        "### Learn a word from photos of any size, here six drawn ones\n"
        "**Try:** your photos and .txt captions in a folder below *input*, chosen as *folder*.\n\n"
        f"**How often is it seen?** Over three concepts (one of which is learned well, two hardly) shape, colour and "
        f"texture are right in {early} pictures after 25 steps and {late} after 500 (docs/evidence/xti.md). This car "
        f"was not among them.\n\n"
        "**試す:** ComfyUI の *input* の下のフォルダーに写真 5 枚と .txt のキャプションを置き、*folder* で選ぶ。",
        groups={
            "models": ("1 models and pictures to learn from", "#3f789e"), "learn": ("2 learn a word", "#a1309b"),
            "without": ("3 without: the word it began as", "#888888"), "with": ("4 with the new word", "#b06634"),
            "compare": ("5 compare", "#88AA88"),
        },
        columns=[["models"], ["learn"], ["without", "with"], ["compare"]],
        note_at=("below", "with"),
    )  # fmt: skip
    start = shapes(example, "a red dotted car on white", pictures=6)
    models = start["models"]
    example.prompt[start["latent"].id]["inputs"]["width"] = 160
    example.places[start["negative"].id].column = 1
    example.prompt[start["latent"].id]["_meta"]["title"] = "160×128, 6 pictures"
    few = example.node("EmptyLatentImage", "128×128, 4 pictures", at=("with", 1), width=128, height=128, batch_size=4)
    drawn = sample(
        example, "Draws what to learn from", ("models", 1), models[0], start["prompt"][0], start["negative"][0],
        start["latent"][0], seed=3, cfg=2.0,
    )  # fmt: skip
    decoded = example.node("VAEDecode", at=("models", 1), size=(220, 0), samples=drawn[0], vae=models[2])
    show(example, ("models", 1), decoded[0], "What it learns from", size=(220, 260))
    photos = example.node(
        "GuidanceLab_XTIPhotos", "Photos of any size", at=("models", 0), size=(210, 0), vae=models[2],
        images=decoded[0], folder="none", size_=128, fit="buckets", crops=4, flips=False, word="", seed=0,
    )  # fmt: skip
    trained = example.node(
        "GuidanceLab_XTITrain", "Learn them as a new word", at=("learn", 0), size=(270, 0), model=models[0],
        clip=models[1], vae=models[2], photos=photos[0], captions="own lines", captions__lines="a {} on white",
        init_word="cube", vectors=1, steps=60, learning_rate=0.01, batch=4, regulariser="none", seed=0, shared=False,
        pictures_at_once=4, preview_every=20, schedule="cosine", warm_up=5, save_every=0, keep_best_every=20,
        gradient_checkpointing=False, preview_prompt="a {} on sand", preview_cfg=2.0,
    )  # fmt: skip
    _use_the_word(example, start, few, trained, "xti_photos", 0)
    return example


def style_mix() -> Example:
    hue = {k: share("xti", k, "hue") for k in ("10", "11")}
    example = Example(
        "XTI style mixing (Shapes)",
        "### Two learned words, mixed layer by layer\n"
        "**Try:** *names* OUT08 → OUT08-OUT11 → up: from which layers the star's look comes.\n\n"
        "**How often is it seen?** For these two words it was not counted. For a learned house and a crescent, 10 "
        f"inner layers of the crescent leave the house's colour in {hue['10']} pictures, 11 in {hue['11']} "
        "(docs/evidence/xti.md): the 11th is OUT08.\n\n"
        "**試す:** *names* を OUT08 → OUT08-OUT11 → up に。どの層から星の見た目が来るかがわかります。",
        groups={
            "models": ("1 models and words", "#3f789e"), "without": ("2 without: the two words", "#888888"),
            "with": ("3 with: mixed", "#b06634"), "compare": ("4 compare", "#88AA88"),
        },
        note_at=("below", "compare"),
    )  # fmt: skip
    start = shapes(example, "", pictures=1, positive=False)
    models = start["models"]
    words = {}
    for key, title, file in (("car", "A learned car", "shapes_car"), ("star", "A learned star", "shapes_star")):
        words[key] = example.node(
            "GuidanceLab_XTILoader", title, at=("models", 0), size=(270, 0), file=f"{file}.safetensors", strength=1.0,
            token="", common_token_first=False,
        )  # fmt: skip
    mixed = example.node(
        "GuidanceLab_XTIStyleMix", "One layer of the star in the car", at=("with", 0), size=(270, 0),
        geometry=words["car"][0], appearance=words["star"][0], layers="layer set", layers__names="OUT08", amount=1.0,
    )  # fmt: skip
    text = "a xti:A on white"
    settings = {"seed": 2, "cfg": 2.0}
    shown = {}
    for key, group, xti in (
        ("car", "without", words["car"]), ("star", "without", words["star"]), ("mix", "with", mixed),
    ):  # fmt: skip
        word = example.node(
            "GuidanceLab_XTIPrompt", f"Prompt: the {key}", at=(group, int(key == "mix")), size=(290, 0),
            model=models[0], clip=models[1], text=text, tokens="", xtis__A=xti[0],
        )  # fmt: skip
        drawn = sample(
            example, f"Draws the {key}", (group, 1), word[0], word[1], start["negative"][0], start["latent"][0],
            **settings,
        )  # fmt: skip
        shown[key] = picture(example, (group, 2), drawn[0], models[2])
    compare(example, shown["car"][0], shown["mix"][0], "xti_mix", "the car", "the mix", side=420, height=350)
    show(example, ("compare", 1), shown["star"][0], "the star", size=(400, 350))
    return example


MAKERS = [per_block_prompts, per_block_conditioning, train_xti, train_from_photos, style_mix]
