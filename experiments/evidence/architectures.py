"""Real architectures at their true sizes, with random weights: does the pack load them, is the gradient right, and does
the memory that it reserves suffice?

Every case writes a file or a folder as it is published, reads it back through the pack's own loader, and takes the
gradient of its score in a picture of noise. Nothing is downloaded; where a tokenizer cannot be made up (SigLIP's), one
with as many words takes its place. Results are kept in `experiments/runs/`, so a run that was stopped goes on.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import folder_paths
import torch
from safetensors.torch import save_file

from guidance_lab.experiments.evidence.pictures import DOCS
from guidance_lab.experiments.training import RUNS
from tools.report import arguments, insert_tables, write_report

LINE = "a red cube left of a blue ball"
CLIPS = (
    "ViT-B-32", "RN50", "MobileCLIP2-S0", "convnext_base", "EVA02-B-16", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2",
    "ViT-L-14", "ViT-H-14", "ViT-bigG-14",
)  # fmt: skip
TIMM = ("resnet50", "vit_base_patch16_224", "convnext_tiny")
CAPTIONERS = ("blip-base", "git-base", "florence2-base", "blip2-opt-2.7b", "smolvlm", "qwen2_5_vl")
TOO_LARGE = ("ViT-H-14", "ViT-bigG-14", "blip2-opt-2.7b")  # only with --large: 4 to 16 GB of memory
# MobileCLIP's convolutions are not normalised: at the usual spread random ones grow to infinity.
SPREAD = {"MobileCLIP2-S0": 0.6}
STEP = 0.1  # length of the step, in the picture, of the finite difference
COLUMNS = ("parameters", "answer", "gradient", "kept", "reserved")


def fill(network: torch.nn.Module, spread: float = 1.0) -> dict[str, torch.Tensor]:
    """Random weights for a network without memory: activations stay near 1, and none is 0."""
    generator, weights = torch.Generator().manual_seed(0), {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            weights[name] = torch.zeros(value.shape, dtype=value.dtype)
            continue
        random = torch.randn(value.shape, generator=generator)
        if value.ndim > 1:
            random *= spread * value[0].numel() ** -0.5
        elif name.endswith("running_var") or (name.endswith(("weight", "gamma")) and value.ndim == 1):
            random = 1 + 0.1 * random.abs()
        else:
            random *= 0.1
        weights[name] = random.half()
    return weights


def on_meta(make: Callable) -> torch.nn.Module:
    with torch.device("meta"):
        return make()


def many_words(folder: Path, count: int) -> None:
    """A tokenizer of `count` words, the first of them those of LINE."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = list(dict.fromkeys(["<unk>", "</s>", "<s>", "[PAD]", "[CLS]", "[SEP]", *LINE.split()]))
    words += [f"word{i}" for i in range(count - len(words))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "</s>", "bos_token": "<s>", "pad_token": "[PAD]"}
    PreTrainedTokenizerFast(tokenizer_object=made, **special).save_pretrained(folder)


def clip_scorer(name: str, folder: Path):
    import open_clip

    from guidance_lab.guidance.similarity import cosine
    from guidance_lab.nodes.clip_guidance.clip_weights import on_meta as architecture
    from guidance_lab.nodes.clip_guidance.scorer_loader import load_scorer
    from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity

    network = architecture(name, False)
    path = folder / f"{name}.safetensors"
    save_file(fill(network, SPREAD.get(name, 1.0)), path)
    text = open_clip.get_model_config(name)["text_cfg"]
    tokenizer = "built in"
    if text.get("hf_tokenizer_name"):
        tokenizer = "words"
        many_words(Path(folder_paths.get_folder_paths("text_encoders")[-1]) / tokenizer, text["vocab_size"] - 8)
    scorer, _ = load_scorer(path, tokenizer_folder=tokenizer)
    path.unlink()
    return CLIPSimilarity(scorer, scorer.embed_lines([LINE]), cosine, name)


def transformers_clip(name: str, folder: Path):
    import transformers

    from guidance_lab.guidance.similarity import cosine
    from guidance_lab.nodes.clip_guidance.scorer_loader import load_scorer
    from guidance_lab.nodes.clip_guidance.scorers import CLIPSimilarity

    kind = getattr(transformers, name)
    path = folder / "model.safetensors"
    save_file(fill(on_meta(lambda: kind(kind.config_class()))), path)
    scorer, _ = load_scorer(path)
    return CLIPSimilarity(scorer, scorer.embed_lines([LINE]), cosine, name)


def classifier(name: str, folder: Path):
    import timm

    from guidance_lab.nodes.clip_guidance.objectives.classifier import ClassProbability
    from guidance_lab.nodes.clip_guidance.objectives.classifier_folder import read_classifier

    network = on_meta(lambda: timm.create_model(name))
    save_file(fill(network), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name, "num_classes": 1000}))
    return ClassProbability(read_classifier(folder), [281], name)


def transformers_classifier(name: str, folder: Path):
    import transformers

    from guidance_lab.nodes.clip_guidance.objectives.classifier import ClassProbability
    from guidance_lab.nodes.clip_guidance.objectives.classifier_folder import read_classifier

    kind = getattr(transformers, name)
    config = kind.config_class(num_labels=1000)
    config.architectures = [name]
    config.save_pretrained(folder)
    save_file(fill(on_meta(lambda: kind(config))), folder / "model.safetensors")
    transformers.ViTImageProcessor().save_pretrained(folder)
    return ClassProbability(read_classifier(folder), [281], name)


def captioner(name: str, folder: Path):
    from guidance_lab.nodes.captions.captioner_loader import read_captioner
    from guidance_lab.nodes.clip_guidance.objectives.caption_likelihood import CaptionLikelihood

    {
        "blip-base": _blip,
        "git-base": _git,
        "florence2-base": _florence2,
        "blip2-opt-2.7b": _blip2,
        "smolvlm": lambda f: _config_only(f, "SmolVLMConfig"),
        "qwen2_5_vl": lambda f: _config_only(f, "Qwen2_5_VLConfig"),
    }[name](folder)
    return CaptionLikelihood(read_captioner(folder), [LINE], [], "token")


def _config_only(folder: Path, config: str) -> None:
    import transformers

    getattr(transformers, config)().save_pretrained(folder)


def _written(folder: Path, network, processor) -> None:
    network.config.save_pretrained(folder)
    save_file(fill(network), folder / "model.safetensors")
    processor.save_pretrained(folder)


def _words(count: int, **special):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[DEC]", *dict.fromkeys(LINE.split())]
    words += [f"word{i}" for i in range(count - len(words) - len(special))]
    return BertTokenizer(
        vocab={word: i for i, word in enumerate([*words, *special.values()])}, mask_token=None, bos_token="[DEC]",
        eos_token="[SEP]", extra_special_tokens=special,
    )  # fmt: skip


TOKENS = {"bos_token_id": 4, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}


def _blip(folder: Path) -> None:
    import transformers

    # blip-image-captioning-base: the defaults of the configuration, but for the vision tower's width and the words.
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 384}
    config = transformers.BlipConfig(
        vision_config={**vision, "num_attention_heads": 12, "patch_size": 16},
        text_config={"vocab_size": 30524, "encoder_hidden_size": 768, **TOKENS},
    )
    network = on_meta(lambda: transformers.BlipForConditionalGeneration(config))
    pictures = transformers.BlipImageProcessor(size={"height": 384, "width": 384})
    _written(folder, network, transformers.BlipProcessor(pictures, _words(30524)))


def _git(folder: Path) -> None:
    import transformers

    config = transformers.GitConfig(**TOKENS)  # the defaults are git-base
    network = on_meta(lambda: transformers.GitForCausalLM(config))
    pictures = transformers.CLIPImageProcessor(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
    _written(folder, network, transformers.GitProcessor(pictures, _words(30522)))


def _florence2(folder: Path) -> None:
    import transformers

    image = 51289 - 1
    config = transformers.Florence2Config(
        text_config={
            "model_type": "bart", "vocab_size": 51289, "d_model": 768, "encoder_layers": 6, "decoder_layers": 6,
            "encoder_attention_heads": 12, "decoder_attention_heads": 12, "encoder_ffn_dim": 3072,
            "decoder_ffn_dim": 3072, "max_position_embeddings": 1024, "bos_token_id": 2, "eos_token_id": 3,
            "pad_token_id": 0, "decoder_start_token_id": 2, "forced_eos_token_id": 3, "forced_bos_token_id": None,
        },
        vision_config={"projection_dim": 768},
        image_token_id=image,
    )  # fmt: skip
    network = on_meta(lambda: transformers.Florence2ForConditionalGeneration(config))
    pictures = transformers.CLIPImageProcessor(
        size={"height": 768, "width": 768}, do_center_crop=False, crop_size={"height": 768, "width": 768}
    )
    pictures.image_seq_length = 577  # 24 x 24 and their mean
    words = _words(51289, image_token="<image>")
    made = transformers.Florence2Processor(pictures, words)
    _written(folder, network, made)


def _blip2(folder: Path) -> None:
    import transformers

    config = transformers.Blip2Config(
        text_config={"model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "ffn_dim": 10240,
                     "num_hidden_layers": 32, "num_attention_heads": 32, "word_embed_proj_dim": 2560,
                     "bos_token_id": 4, "eos_token_id": 3, "pad_token_id": 0},
        image_token_index=50303,
    )  # fmt: skip
    network = on_meta(lambda: transformers.Blip2ForConditionalGeneration(config))
    words = _words(50304, image_token="<image>")
    pictures = transformers.BlipImageProcessor(size={"height": 224, "width": 224})
    _written(folder, network, transformers.Blip2Processor(pictures, words, num_query_tokens=32))


def kept_bytes(scorer, view: torch.Tensor) -> tuple[torch.Tensor, float]:
    """(gradient of the score in the view, bytes that autograd kept for it beside the weights)."""
    own = {p.untyped_storage().data_ptr() for model in scorer.models for p in model.model.parameters()}
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    leaf = view.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        score = scorer.score(leaf, SimpleNamespace())
    return torch.autograd.grad(score.sum(), leaf)[0], float(sum(seen.values()))


def check(make: Callable, name: str) -> dict:
    """One line of the table. The answer is `loads`, or the sentence of a refusal."""
    began = time.process_time()
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / name
        folder.mkdir()
        try:
            with torch.inference_mode():  # as a node runs
                scorer = make(name, folder)
        except ValueError as error:
            return {"architecture": name, "answer": str(error)}
    comfy.model_management.load_models_gpu(list(scorer.models))
    generator = torch.Generator().manual_seed(1)
    with torch.inference_mode(False), torch.enable_grad():
        view = torch.rand(1, 3, scorer.side, scorer.side, generator=generator)
        gradient, kept = kept_bytes(scorer, view)
    direction = gradient / gradient.norm()
    with torch.no_grad():

        def slope(h: float) -> float:
            above, below = (float(scorer.score(view + sign * h * direction, SimpleNamespace())) for sign in (1, -1))
            return (above - below) / (2 * h)

        expected = (4 * slope(STEP / 2) - slope(STEP)) / 3
    wide = comfy.model_management.dtype_size(next(scorer.models[0].model.parameters()).dtype) / 2
    # The memory of a captioner knows its dtype; that of a CLIP is one number.
    reserved = scorer.memory / wide if hasattr(scorer, "likelihood") else scorer.memory
    found = {
        "architecture": name,
        "parameters": sum(p.numel() for model in scorer.models for p in model.model.parameters()) / 1e6,
        "answer": "loads",
        "gradient": abs(float(gradient.norm()) / expected - 1),
        "kept": kept / wide / 2**20,
        "reserved": reserved / 2**20,
        "seconds": time.process_time() - began,
    }
    comfy.model_management.unload_all_models()
    return found


CASES: dict[str, Callable] = {
    **dict.fromkeys(CLIPS, clip_scorer),
    **dict.fromkeys(("CLIPModel", "SiglipModel"), transformers_clip),
    **dict.fromkeys(TIMM, classifier),
    "ViTForImageClassification": transformers_classifier,
    **dict.fromkeys(CAPTIONERS, captioner),
}


def line(row: dict) -> str:
    numbers = (
        [
            f"{row['parameters']:.0f}",
            row["answer"],
            f"{row['gradient']:.1e}",
            f"{row['kept']:.0f}",
            f"{row['reserved']:.0f}",
        ]
        if "kept" in row
        else ["", row["answer"], "", "", ""]
    )
    return f"| {row['architecture']} | " + " | ".join(numbers) + " |"


def main() -> None:
    parser = arguments(__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=list(CASES), help="only these architectures")
    parser.add_argument("--large", action="store_true", help="also those that take 4 GB and more")
    args = parser.parse_args()
    words = Path(tempfile.mkdtemp())
    folder_paths.add_model_folder_path("text_encoders", str(words))
    store = RUNS / "evidence" / "architectures.json"
    store.parent.mkdir(parents=True, exist_ok=True)
    rows = json.loads(store.read_text()) if store.exists() else {}
    names = args.only or (["ViT-B-32", "SiglipModel"] if args.quick else list(CASES))
    for name in names:
        if name in rows or (name in TOO_LARGE and not args.large):
            continue
        rows[name] = check(CASES[name], name)
        store.write_text(json.dumps(rows, indent=1))
        print(line(rows[name]), flush=True)
        gc.collect()
    made = [rows[name] for name in CASES if name in rows]
    write_report(
        args.json,
        {f"kept / reserved {r['architecture']}": r["kept"] / r["reserved"] for r in made if "kept" in r},
        made,
    )
    if args.quick:
        return
    page = DOCS / "architectures.json"
    elsewhere = {row["architecture"]: row for row in json.loads(page.read_text(encoding="utf-8"))["rows"]}
    rows = elsewhere | rows  # what another machine measured stays on the page
    made = [rows[name] for name in CASES if name in rows]
    text = "\n".join(
        ["| architecture | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|", *map(line, made)]
    )
    write_report(page, {}, made)
    insert_tables(DOCS / "architectures.md", text)


if __name__ == "__main__":
    main()
