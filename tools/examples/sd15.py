"""The examples on a Stable Diffusion 1.5 checkpoint, which need files of the user."""

from tools.examples.parts import twins
from tools.examples.plan import Example, ModelFile, Ref

HUB = "https://huggingface.co"
CHECKPOINT = ModelFile(
    "checkpoints/v1-5-pruned-emaonly-fp16.safetensors",
    f"{HUB}/Comfy-Org/stable-diffusion-v1-5-archive/resolve/main/v1-5-pruned-emaonly-fp16.safetensors",
)
SCORER = ModelFile(
    "clip_vision/CLIP-ViT-B-32-laion2B-s34B-b79K.safetensors",
    f"{HUB}/laion/CLIP-ViT-B-32-laion2B-s34B-b79K/resolve/main/open_clip_model.safetensors",
)
GLIDE = "https://openaipublic.blob.core.windows.net/diffusion/dec-2021"
NOISED_CLIP = [
    ModelFile(f"clip_vision/{name}", f"{GLIDE}/{name}") for name in ("clip_image_enc.pt", "clip_text_enc.pt")
]
TRANSFORMERS_FILES = (
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
NOT_COUNTED = (
    "**How often is it seen?** Not counted with these models; the example with *(Shapes)* in its name gives a figure "
    "of a toy world."
)
CLIP_SETTINGS = {
    "strength": 0.5, "start_percent": 0.2, "end_percent": 1.0, "gradient": "x0", "blend": "UPainting", "every": 1,
    "whole_view": True, "seed": 0, "size_": "rms",
}  # fmt: skip


def folder(kind: str, repository: str, names=TRANSFORMERS_FILES) -> list[ModelFile]:
    """The files of a model folder, `models/KIND/NAME/...`."""
    name = repository.split("/")[1]
    return [ModelFile(f"{kind}/{name}/{file}", f"{HUB}/{repository}/resolve/main/{file}") for file in names]


def start(example: Example, prompt: str, negative: str) -> dict[str, Ref]:
    models = example.node("CheckpointLoaderSimple", at=("models", 0), size=(270, 0), ckpt_name=CHECKPOINT.name)
    return {
        "models": models,
        "prompt": example.node("CLIPTextEncode", "Prompt", at=("models", 0), clip=models[1], text=prompt),
        "negative": example.node(
            "CLIPTextEncode", "Negative", at=("models", 0), size=(270, 60), clip=models[1], text=negative
        ),
        "latent": example.node("EmptyLatentImage", "512×512", at=("models", 0), width=512, height=512, batch_size=1),
    }


def _example(name: str, what: str, attempt: str, ja: str, files: list[ModelFile], listed: list[str]) -> Example:
    note = f"### {what}\n**Try:** {attempt}\n\n{NOT_COUNTED}\n\n" + "\n".join(["**What to get**", *listed])
    return Example(name, f"{note}\n\n**試す:** {ja}", files=[CHECKPOINT, *files], needs="needs SD1.5")


def line(file: ModelFile) -> str:
    return f"- `models/{file.path}`: [fetch]({file.url})"


def folder_line(files: list[ModelFile]) -> str:
    where = files[0].path.rsplit("/", 1)[0]
    page = files[0].url.split("/resolve/")[0]
    names = ", ".join(file.path.rsplit("/", 1)[1] for file in files)
    return f"- `models/{where}/` with {names}: [page]({page})"


def draw(example: Example, begin: dict[str, Ref], guided: Ref, save: str, first: int = 1, **settings) -> None:
    settings = {"steps": 30, "cfg": 7.0, "seed": 7} | settings
    twins(example, begin, guided, save, first=first, scale=1, **settings)


def guidance(example: Example, begin: dict[str, Ref], objective: Ref, decoder: str, crops: int) -> Ref:
    return example.node(
        "GuidanceLab_CLIPGuidance", at=("with", 1), size=(270, 0), model=begin["models"][0], objective=objective[0],
        decoder=decoder, decoder__vae=begin["models"][2], crops=crops, **CLIP_SETTINGS,
    )  # fmt: skip


def autoguidance() -> Example:
    example = _example(
        "Autoguidance on SD1.5", "A weaker version of your checkpoint as its guide",
        "*method*: block_skip → token_shuffle; *weight* 2 → 1.5 → 3. A real earlier checkpoint or the base of a "
        "fine-tune, in a second *Load Checkpoint*, is a better guide.",
        "*method* を token_shuffle に、*weight* を 2 → 1.5 → 3 に。本物の古いチェックポイントのほうが良いガイドです。"
        "", [],
        [line(CHECKPOINT)],
    )  # fmt: skip
    begin = start(example, "a red fox in the snow", "")
    models = begin["models"]
    weaker = example.node(
        "GuidanceLab_WeakerVersion", at=("with", 0), model=models[0], method="block_skip", method__blocks="default"
    )
    pair = example.node(
        "GuidanceLab_AutoguidanceModelPair", at=("with", 0), model=models[0], guide_model=weaker[0], weight=2.0,
        start_percent=0.0, end_percent=1.0,
    )  # fmt: skip
    draw(example, begin, pair, "autoguidance", seed=1, cfg=4.0, sampler_name="euler", scheduler="normal")
    return example


def clip() -> Example:
    prompt = "a red cube on top of a blue sphere, studio photograph"
    example = _example(
        "CLIP guidance on SD1.5", "A CLIP looks at the half-finished picture",
        "*strength* 0.5 → 0.2 → 1; *crops* 2 → 4; another text in *Objective: CLIP Text*.",
        "*strength* を 0.5 → 0.2 → 1、*crops* を 2 → 4 に。", [SCORER],
        [line(CHECKPOINT), line(SCORER) + ", saved under this name"],
    )  # fmt: skip
    begin = start(example, prompt, "blurry, low quality")
    scorer = example.node(
        "GuidanceLab_CLIPScorerLoader", at=("with", 0), size=(270, 0), source="file", source__file=SCORER.name,
        source__activation="auto", source__pixel_statistics="auto", source__tokenizer="built in",
    )  # fmt: skip
    objective = example.node(
        "GuidanceLab_ObjectiveCLIPText", at=("with", 0), size=(270, 160), scorer=scorer[0], text=prompt, weight=1.0,
        similarity="cosine",
    )  # fmt: skip
    guided = guidance(example, begin, objective, "vae_crop", 2)
    draw(example, begin, guided, "clip_guidance", first=2)
    return example


def blip() -> Example:
    text = "a red cube on top of a blue sphere"
    files = folder("captioners", "Salesforce/blip-itm-base-coco")
    example = _example(
        "BLIP match on SD1.5", "A matcher says whether text and picture belong together",
        "*strength* 0.5 → 1; another sentence in *Objective: Image-Text Match*, or two of them in *Objective: "
        "Combine*.",
        "*strength* を 0.5 → 1 に。文を変える、または Combine で 2 つつなぐ。", files, [line(CHECKPOINT),
        folder_line(files)],
    )  # fmt: skip
    begin = start(example, text + ", studio photograph", "blurry, low quality")
    objective = example.node(
        "GuidanceLab_ObjectiveImageTextMatch", at=("with", 0), size=(270, 180), model="blip-itm-base-coco", text=text,
        weight=1.0,
    )  # fmt: skip
    draw(example, begin, guidance(example, begin, objective, "vae", 0), "blip_match", first=2)
    return example


def classifier() -> Example:
    name = "vit_base_patch16_224.augreg_in21k_ft_in1k"
    files = folder("classifiers", f"timm/{name}", ("config.json", "model.safetensors"))
    example = _example(
        "Classifier guidance on SD1.5", "A classifier pulls towards one of its classes",
        "*class_name* Egyptian cat → tabby → Persian cat; *strength* 0.5 → 1.",
        "*class_name* を tabby や Persian cat に、*strength* を 0.5 → 1 に。", files, [line(CHECKPOINT),
        folder_line(files)],
    )  # fmt: skip
    begin = start(example, "a cat on a sofa, photograph", "blurry, low quality")
    objective = example.node(
        "GuidanceLab_ObjectiveClassifier", at=("with", 0), size=(270, 0), classifier=name, class_name="Egyptian cat",
        weight=1.0,
    )  # fmt: skip
    draw(example, begin, guidance(example, begin, objective, "vae_crop", 2), "classifier_guidance", first=2)
    return example


def noised_clip() -> Example:
    text = "a corgi in a field of flowers"
    example = _example(
        "GLIDE's noised CLIP on SD1.5", "GLIDE's CLIP, which has seen noisy pictures",
        "*looks_at*: timestep 250 → 100 (finer) → 500 (coarser); *strength* 0.5 → 1.",
        "*timestep* を 250 → 100(細部)→ 500(大まか)に。", NOISED_CLIP, [line(CHECKPOINT), *map(line, NOISED_CLIP)],
    )  # fmt: skip
    begin = start(example, text, "blurry, low quality")
    objective = example.node(
        "GuidanceLab_ObjectiveNoisedCLIP", at=("with", 0), size=(270, 230), image_encoder="clip_image_enc.pt",
        text_encoder="clip_text_enc.pt", text=text, weight=1.0, looks_at="estimate", looks_at__timestep=250,
        looks_at__draws=2,
    )  # fmt: skip
    draw(example, begin, guidance(example, begin, objective, "vae", 1), "noised_clip", first=2)
    return example


def _captioner(example: Example, at: tuple[str, int]) -> Ref:
    return example.node(
        "GuidanceLab_CaptionerLoader", at=at, size=(270, 0), source="folder",
        source__folder="blip-image-captioning-base", source__max_tokens=40,
    )  # fmt: skip


CAPTIONER = folder("captioners", "Salesforce/blip-image-captioning-base")


def likelihood() -> Example:
    example = _example(
        "Caption likelihood on SD1.5", "How likely is your sentence for this picture, against the wrong one?",
        "empty the field *against*; *strength* 0.5 → 1; *gradient* x0 → through model (slower).",
        "*against* を空に、*strength* を 0.5 → 1 に。", CAPTIONER, [line(CHECKPOINT), folder_line(CAPTIONER)],
    )  # fmt: skip
    begin = start(example, "a red cube above a blue ball, studio photograph", "blurry, low quality")
    captioner = _captioner(example, ("with", 0))
    objective = example.node(
        "GuidanceLab_ObjectiveCaptionLikelihood", at=("with", 0), size=(270, 200), captioner=captioner[0],
        text="a red cube above a blue ball", weight=1.0, per="token", against="a blue cube above a red ball",
    )  # fmt: skip
    draw(example, begin, guidance(example, begin, objective, "vae", 0), "caption_likelihood", first=2)
    return example


def residual() -> Example:
    example = _example(
        "Caption residual guidance on SD1.5", "Away from what a captioner already sees too much of",
        "*scale* 0.5 → 1 → 2; *every* 3 → 1 (slower).", "*scale* を 0.5 → 1 → 2 に。", CAPTIONER,
        [line(CHECKPOINT), folder_line(CAPTIONER)],
    )  # fmt: skip
    begin = start(example, "a red bicycle leaning on a blue door, a cat on the saddle", "")
    models, captioner = begin["models"], _captioner(example, ("with", 0))
    guided = example.node(
        "GuidanceLab_CaptionResidualGuidance", at=("with", 1), size=(270, 0), model=models[0], clip=models[1],
        captioner=captioner[0], decoder="vae", decoder__vae=models[2], scale=0.5, every=3, start_percent=0.2,
        end_percent=1.0, prompt="",
    )  # fmt: skip
    draw(example, begin, guided, "caption_residual", first=2, seed=1, sampler_name="euler", scheduler="normal")
    return example


AESTHETIC_CLIP = ModelFile("clip_vision/ViT-L-14-openai.safetensors")
AESTHETIC_HEAD = ModelFile(
    "aesthetic/sac+logos+ava1-l14-linearMSE.pth",
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/sac%2Blogos%2Bava1-l14-linearMSE.pth",
)


def aesthetic() -> Example:
    prompt = "a red cube on top of a blue sphere, studio photograph"
    example = _example(
        "Aesthetic and CLIP text on SD1.5", "A rating head pulls beside your text",
        "*weight* of *Objective: Aesthetic* 0.05 → 0 → 0.2; *strength* 0.5 → 1.",
        "*Objective: Aesthetic* の *weight* を 0.05 → 0 → 0.2 に、*strength* を 0.5 → 1 に。",
        [AESTHETIC_CLIP, AESTHETIC_HEAD],
        [
            line(CHECKPOINT),
            f"- `models/{AESTHETIC_CLIP.path}`: OpenAI's ViT-L/14 of open_clip, both towers "
            f"([page]({HUB}/timm/vit_large_patch14_clip_224.openai)), saved under this name",
            line(AESTHETIC_HEAD),
        ],
    )  # fmt: skip
    example.note_at = ("below", "compare")
    begin = start(example, prompt, "blurry, low quality")
    scorer = example.node(
        "GuidanceLab_CLIPScorerLoader", at=("models", 0), size=(270, 0), source="file",
        source__file=AESTHETIC_CLIP.name, source__activation="auto", source__pixel_statistics="auto",
        source__tokenizer="built in",
    )  # fmt: skip
    said = example.node(
        "GuidanceLab_ObjectiveCLIPText", at=("with", 0), size=(270, 130), scorer=scorer[0], text=prompt, weight=1.0,
        similarity="cosine",
    )  # fmt: skip
    rated = example.node(
        "GuidanceLab_ObjectiveAesthetic", at=("with", 0), size=(270, 0), scorer=scorer[0], head=AESTHETIC_HEAD.name,
        weight=0.05,
    )  # fmt: skip
    both = example.node(
        "GuidanceLab_ObjectiveCombine", at=("with", 0), size=(270, 0), weights="", objectives__objective0=said[0],
        objectives__objective1=rated[0],
    )  # fmt: skip
    draw(example, begin, guidance(example, begin, both, "vae_crop", 2), "aesthetic", first=2, side=400)
    return example


MAKERS = [aesthetic, autoguidance, blip, clip, likelihood, residual, classifier, noised_clip]
