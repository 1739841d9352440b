"""Networks of timm from a folder on this computer: only sizes and choices of an architecture are taken from the
folder, never a path, an address or anything else that timm would load.
"""

import inspect
import re
from pathlib import Path

import torch

from ...host.model_folders import weights_of
from ...host.transformers_folders import short

# Older ones unpickle the file that a `checkpoint_path` names, with the code in it.
OLDEST = (1, 0, 26)
_MAX_NUMBER = 16_384  # of a width or a side
_MAX_DEPTH = 512  # of layers
_WORD = re.compile(r"[A-Za-z0-9_]{1,64}")
_NOT_ARCHITECTURE = re.compile(r"pretrain|checkpoint|path|file|cache|url|hub|hf_|dir$|cfg|config|weights|features_only")


def read_timm(folder: Path, name: object, arguments: object, classes: int | None) -> torch.nn.Module:
    """The network `name` of timm with the weights of the folder. `arguments`: the folder's model_args.

    ValueError, in one sentence, when timm is too old or does not have it, when an argument is no number, word or yes/no
    that the architecture itself declares, or when the weights are another network's.
    """
    timm = _timm()
    # A name may also be an address ("hf-hub:someone/something"), which is_model does not know.
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", name) or not timm.is_model(name):
        raise ValueError(
            f"{folder.name} is a '{short(name)[:100]}', which timm {timm.__version__} does not have: update timm, or "
            f"use another classifier."
        )
    weights = weights_of(folder)
    arguments = _checked(arguments, folder) if arguments is not None else {}
    options = {"num_classes": classes, **arguments} if classes is not None else arguments
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            _refuse_foreign(arguments, _declared(timm, name), name)
            network = _built(timm, name, options, weights)
    except _Undeclared as error:
        raise ValueError(f"config.json of {folder.name} {error}.") from None
    except Exception as error:  # whatever sizes that do not belong together make of timm
        raise ValueError(
            f"{folder.name}: the weights are not those of '{name}' ({short(error)}): download the whole folder again."
        ) from None
    return network


class _Undeclared(Exception):
    pass


def _timm():
    try:
        import timm  # slow, and not needed for the other kinds
    except ImportError:
        raise ValueError(
            "This classifier needs the Python package timm: install timm 1.0.26 or newer into ComfyUI's own Python."
        ) from None
    found = tuple(int(part) for part in re.findall(r"\d+", timm.__version__)[:3])
    if found < OLDEST:
        raise ValueError(
            f"timm {timm.__version__} can run code that is hidden in a model's folder: update timm to 1.0.26 or newer."
        )
    return timm


def _checked(arguments: object, folder: Path) -> dict:
    """The arguments, when all are small numbers, words, yes or no, or lists of such."""
    if not isinstance(arguments, dict) or len(arguments) > 50:
        raise ValueError(f"The model_args of {folder.name} are no short list of sizes: download its config.json again.")
    for key, value in arguments.items():
        if _NOT_ARCHITECTURE.search(key.lower()):
            raise ValueError(
                f"config.json of {folder.name} has '{short(key)[:60]}' in model_args, which is no size of an "
                f"architecture and could load something: use a folder without it."
            )
        if not _small(value, _MAX_DEPTH if re.search("depth|layers|blocks", key) else _MAX_NUMBER):
            raise ValueError(
                f"config.json of {folder.name} gives '{short(key)[:60]}' in model_args as {str(value)[:60]!r}; only "
                f"numbers up to {_MAX_NUMBER}, words and yes or no are taken: use a folder without it."
            )
    return dict(arguments)


def _small(value: object, limit: int) -> bool:
    if isinstance(value, list):
        return len(value) <= 16 and all(not isinstance(item, list) and _small(item, limit) for item in value)
    if isinstance(value, str):
        return bool(_WORD.fullmatch(value))
    return value is None or (type(value) in (bool, int, float) and abs(value) <= limit)


def _declared(timm, name: str) -> set[str]:
    """Names in the signatures of the network's own class and of its bases within timm, with their types left open."""
    with torch.device("meta"):
        try:
            kind = type(timm.create_model(name, pretrained=False))
        except Exception:  # a few architectures compute numbers while they are built
            kind = None
    kind = kind or type(timm.create_model(name, pretrained=False))
    return {
        parameter.name
        for one in kind.__mro__
        if one.__module__.startswith("timm.models.")
        for parameter in inspect.signature(one.__init__).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    } - {"self"}


def _refuse_foreign(arguments: dict, declared: set[str], name: str) -> None:
    foreign = sorted(set(arguments) - declared)
    if foreign:
        raise _Undeclared(
            f"has '{short(foreign[0])[:60]}' in model_args, which '{name}' does not know as a size of its own: use a "
            f"folder without it"
        )


def _built(timm, name: str, options: dict, weights: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The network, first without memory: only when names and shapes are those of the file is it built for good."""
    try:
        with torch.device("meta"):
            shape = timm.create_model(name, pretrained=False, **options)
    except NotImplementedError:  # it computes numbers while it is built
        shape = timm.create_model(name, pretrained=False, **options)
    for key, value in shape.state_dict().items():
        if key in weights and weights[key].is_floating_point() != value.is_floating_point():
            raise ValueError(f"'{key}' holds {weights[key].dtype}")
    shape.load_state_dict(weights, assign=True)
    network = timm.create_model(name, pretrained=False, **options)
    network.load_state_dict(weights)
    return network.eval()
