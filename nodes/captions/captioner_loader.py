"""Captioner Loader: an image-to-text model from a folder on this computer, or a vision-language text encoder of
ComfyUI.
"""

from pathlib import Path

from .._api import io
from ..host.model_folders import chosen_folder, model_folders, read_json
from ..host.transformers_folders import read_network, short
from .captioners import CaptionerSocket, TextGeneratingClip, TransformersCaptioner

CATEGORY = "Guidance Lab/Captions"
FOLDER = "captioners"
# config.json's model_type → class, and what Florence-2 is asked with. Classes by name: what a file says is never
# imported.
_CLASSES = {
    "blip": ("BlipForConditionalGeneration", None),
    "blip-2": ("Blip2ForConditionalGeneration", None),
    "git": ("GitForCausalLM", None),
    "florence2": ("Florence2ForConditionalGeneration", "<CAPTION>"),
}
QUESTION = (
    "Describe this picture in one short sentence: its objects, their colours, how many there are and where they are."
)


def read_captioner(path: Path, max_tokens: int = 40) -> TransformersCaptioner:
    """The captioner in a folder as transformers saves it. Nothing is downloaded, no code and no pickle of the folder is
    run.

    ValueError, in one sentence, when the folder holds no captioner, only pickled weights, or weights of another model.
    """
    kind = read_json(path / "config.json").get("model_type")
    if not isinstance(kind, str) or kind not in _CLASSES:
        raise ValueError(
            f"{path.name} is a '{short(kind)[:60]}' model; a captioner has to be one of {', '.join(_CLASSES)}."
        )
    class_name, task = _CLASSES[kind]
    network = read_network(path, class_name, f"a {kind} captioner")
    import transformers  # slow

    try:
        processor = transformers.AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        if not callable(getattr(processor, "batch_decode", None)) or not hasattr(processor, "image_processor"):
            raise TypeError(f"it has a {type(processor).__name__} and no processor of pictures and words")
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ValueError(
            f"{path.name} cannot be read as a {kind} captioner ({short(error)}): download the whole folder again."
        ) from None
    return TransformersCaptioner(network, processor, max_tokens, task, name=path.name)


class CaptionerLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        max_tokens = io.Int.Input(
            "max_tokens",
            default=40,
            min=5,
            max=200,
            tooltip="Longest caption, in tokens (about 3/4 of a word each). 20 to 60 usual; a caption that ends "
            "earlier costs less.",
        )
        return io.Schema(
            node_id="GuidanceLab_CaptionerLoader",
            display_name="Captioner Loader",
            category=CATEGORY,
            description=(
                "Loads a model that says in words what a picture shows, for Caption Residual Guidance: BLIP, BLIP-2, "
                "GIT or Florence-2 from a folder, or a vision-language text encoder that you already have."
            ),
            search_aliases=[
                "captioner",
                "BLIP",
                "BLIP-2",
                "GIT",
                "Florence-2",
                "image to text",
                "interrogate",
                "VLM",
                "h(x)",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "source",
                    options=[
                        io.DynamicCombo.Option(
                            "folder",
                            [
                                io.Combo.Input(
                                    "folder",
                                    options=sorted(model_folders(FOLDER)),
                                    tooltip="A folder in models/captioners: config.json, tokenizer and .safetensors as "
                                    "downloaded. blip-image-captioning-base (0.25 B parameters) is small and good; "
                                    "Florence-2 has to be the version for transformers (florence-community). Nothing "
                                    "is downloaded.",
                                ),
                                max_tokens,
                            ],
                        ),
                        io.DynamicCombo.Option(
                            "text_encoder",
                            [
                                io.Clip.Input(
                                    "clip",
                                    tooltip="A text encoder that sees and writes: Qwen3-VL, Gemma 3 or Gemma 4 from "
                                    "Load CLIP. It may be the one of your diffusion model; slower than BLIP.",
                                ),
                                io.String.Input(
                                    "question",
                                    default=QUESTION,
                                    multiline=True,
                                    tooltip="What it is asked about each picture. Ask for one sentence, in the kind of "
                                    "words that your prompts have.",
                                ),
                                max_tokens,
                            ],
                        ),
                    ],
                    tooltip="Where the captioner comes from: a folder in models/captioners, or a vision-language text "
                    "encoder.",
                )
            ],
            outputs=[
                CaptionerSocket.Output(
                    "captioner",
                    tooltip="The captioner. It always takes the likeliest word, so a picture always gets the same "
                    "caption.",
                )
            ],
        )

    @classmethod
    def execute(cls, source: dict | None = None) -> io.NodeOutput:
        source = source or {}
        if source.get("source") == "folder":
            return io.NodeOutput(
                read_captioner(chosen_folder(FOLDER, source.get("folder")), source.get("max_tokens", 40))
            )
        if source.get("source") == "text_encoder":
            if source.get("clip") is None:
                raise ValueError(
                    "Captioner Loader got an empty CLIP: the checkpoint has no text encoder; connect one from Load "
                    "CLIP."
                )
            return io.NodeOutput(
                TextGeneratingClip(source["clip"], source.get("question", QUESTION), source.get("max_tokens", 40))
            )
        raise ValueError("Captioner Loader does not know this source: choose folder or text_encoder.")


NODES = [CaptionerLoader]
