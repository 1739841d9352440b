"""Networks of transformers from a folder on this computer: config and weights, and nothing else of the folder."""

from pathlib import Path

import torch

from .model_folders import check_configs, check_sizes, weights_of

SLACK = 4_000_000  # weights beyond twice those of the files that a config may describe: 16 MB


def read_network(folder: Path, class_name: str, what: str) -> torch.nn.Module:
    """A network of that class of transformers with the weights of the folder, in eval mode.

    class_name: from a list of ours, never from a file. what: for messages, such as `a BLIP matcher`. The weights are
    read here and given to transformers as tensors, so that it looks for no adapter, index or code beside them.
    ValueError, in one sentence, when the folder asks for more than that, is damaged, or is another model.
    """
    import transformers  # slow

    check_configs(folder)
    check_sizes(folder)
    kind = getattr(transformers, class_name, None)
    if kind is None:
        raise ValueError(
            f"{folder.name} needs {class_name}, which transformers {transformers.__version__} does not have: update "
            f"transformers."
        )
    weights = weights_of(folder)
    try:
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            config = kind.config_class.from_pretrained(folder, local_files_only=True)
            with torch.device("meta"):  # the shapes alone
                described = sum(weight.numel() for weight in kind(config).parameters())
            held = sum(weight.numel() for weight in weights.values())
            if described > 2 * held + SLACK:  # transformers would make up the rest, in the memory of a whole model
                raise ValueError(
                    f"config.json is of a model of {described / 1e6:.0f} million weights, the files hold "
                    f"{held / 1e6:.1f}"
                )
            network, report = kind.from_pretrained(
                None, config=config, state_dict=weights, output_loading_info=True, local_files_only=True
            )
            if network.can_generate() and (folder / "generation_config.json").is_file():
                network.generation_config = transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes of transformers
        raise ValueError(
            f"{folder.name} cannot be read as {what} ({short(error)}): download the whole folder again."
        ) from None
    if report["missing_keys"]:
        raise ValueError(
            f"{folder.name} is no {what.partition(' ')[2]} that transformers {transformers.__version__} can read: "
            f"{len(report['missing_keys'])} weights such as {min(report['missing_keys'])} are missing; use a whole "
            f"model of that kind, converted for transformers."
        )
    return network.eval()


def short(what: object) -> str:
    """The beginning of an error's or a value's text, on one line of what can be written."""
    text = " ".join(str(what).split())[:160]
    return "".join(sign if sign.isprintable() else "?" for sign in text)
