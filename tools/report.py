"""The one output format of benchmarks and evidence: `{"device", "versions", "ratios": {name: number}, "rows":
[...]}`.
"""

import argparse
import json
import platform
from importlib import metadata
from pathlib import Path

import torch


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark and evidence script has; add your own before `parse_args()`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument(
        "--quick", action="store_true", help="a short run that shows that everything works, not the figures"
    )
    return parser


def write_report(
    path: Path | None, ratios: dict[str, float], rows: list[dict], device: str | torch.device = "cpu"
) -> dict:
    """Write (if `path` is given) and return the report of a run on `device`.

    `ratios`: name → the number that a goal or a claim is about; `rows`: everything measured, one dict per row.
    """
    report = {
        "device": describe_device(torch.device(device)),
        "versions": versions(),
        "ratios": {name: float(value) for name, value in ratios.items()},
        "rows": rows,
    }
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def print_report(ratios: dict[str, float], rows: list[dict]) -> None:
    """The same for a person: a line a row, then a line a ratio."""
    for row in rows:
        values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(", ".join(values))
    for name, value in ratios.items():
        print(f"{name}: {value:.3f}")


def insert_tables(page: Path, text: str, script: str = "") -> None:
    """Replaces the tables of an evidence page and leaves its words alone; makes the page when there is none.

    `script`: which script's tables, where a page has those of several; else the one with the page's name.
    """
    begin = f"<!-- tables, written by `python dev.py evidence {script or page.stem}` -->"
    end = "<!-- end of tables -->"
    before, _, rest = (page.read_text(encoding="utf-8") if page.exists() else "").partition(begin)
    after = rest.partition(end)[2] or "\n"
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


def describe_device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {platform.machine()}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    """Python, torch and, where it is importable, ComfyUI and the packages that decide results or speed."""
    found = {"python": platform.python_version(), "torch": torch.__version__}
    try:
        import comfyui_version

        found["comfyui"] = comfyui_version.__version__
    except ImportError:
        pass
    for package in ("open_clip_torch", "transformers", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            pass
    return found
