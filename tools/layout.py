"""`python -m tools.layout`: which folder of the pack imports which. Standard library only.

A folder of `nodes/` counts by itself (a family). Arrows point from a folder to what it imports; they go down the list
of LAYERS and never up, so there is no circle.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# Highest first: a folder may import from the layers below its own, and from nothing beside it.
LAYERS = (
    ("experiments",),
    ("",),  # __init__.py of the pack
    ("nodes",),  # collects the families
    ("nodes/shapes",),  # gives out what other families take
    (
        "nodes/autoguidance", "nodes/captions", "nodes/clip_guidance", "nodes/compare", "nodes/galip", "nodes/glide",
        "nodes/layers", "nodes/trace",
    ),
    ("nodes/host",),
    ("shapes",),  # on ComfyUI's model classes
    ("guidance", "xti", "galip", "glide"),
    ("plots", "weight_files"),
)  # fmt: skip
# Folders whose modules may import ComfyUI.
ON_COMFYUI = ("experiments", "nodes", "shapes", "")
# Families whose parts another family may build on, through what their `__init__` names: (importer, imported).
FACES = {("nodes/autoguidance", "nodes/layers"), ("nodes/clip_guidance", "nodes/captions")}


def level(folder: str) -> int:
    """The place of a folder in LAYERS, 0 the highest. KeyError for a folder that has none."""
    for place, folders in enumerate(LAYERS):
        if folder in folders:
            return place
    raise KeyError(f"{folder!r} is in no layer of tools/layout.py; say where it belongs")


def folder_of(module: tuple[str, ...]) -> str:
    """The folder that a module of the pack counts for: ("nodes", "galip", "loader") -> "nodes/galip"."""
    if not module or not (ROOT / module[0]).is_dir():
        return ""
    if module[0] == "nodes":
        return "/".join(module[:2]) if len(module) > 1 and (ROOT / "nodes" / module[1]).is_dir() else "nodes"
    return module[0]


def modules() -> list[Path]:
    """Every module of the pack and of what is built on it, tests and tools aside."""
    tops = sorted({folder.split("/")[0] for layer in LAYERS for folder in layer if folder})
    return [ROOT / "__init__.py", *(path for top in tops for path in sorted((ROOT / top).rglob("*.py")))]


def imports(path: Path) -> list[tuple[str, ...]]:
    """What a file imports, also inside functions: modules of the pack as (".", folder, ...), others by their names."""
    package = path.relative_to(ROOT).parent.parts
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [tuple(name.name.split(".")) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                base = (".", *package[: len(package) - node.level + 1], *named)
            elif named[0] == "guidance_lab":
                base = (".", *named[1:])
            else:
                found.append(named)
                continue
            for alias in node.names:  # `from . import x` names a module, `from .x import y` what is in one
                inside = ROOT.joinpath(*base[1:], alias.name)
                found.append((*base, alias.name) if inside.is_dir() or inside.with_suffix(".py").is_file() else base)
    return found


def arrows() -> dict[tuple[str, str], list[str]]:
    """(importing folder, imported folder) -> the files that import."""
    graph: dict[tuple[str, str], list[str]] = {}
    for path in modules():
        name = path.relative_to(ROOT).as_posix()
        here = folder_of(path.relative_to(ROOT).with_suffix("").parts)
        for module in imports(path):
            if module[0] != ".":
                continue
            there = folder_of(module[1:])
            # `_api.py` names ComfyUI's node interface for all of nodes/; it imports nothing of ours.
            if there != here and module[1:3] != ("nodes", "_api") and name not in graph.setdefault((here, there), []):
                graph[here, there].append(name)
    return {arrow: files for arrow, files in graph.items() if files}


def main() -> None:
    graph = arrows()
    for (here, there), files in sorted(graph.items(), key=lambda arrow: (level(arrow[0][0]), arrow[0])):
        print(f"{here or '(the pack)':22} -> {there or '(the pack)':22} {len(files)} files")
    between = [arrow for arrow in graph if all(end.startswith("nodes/") for end in arrow)]
    print(f"{len(graph)} arrows between folders, {len(between)} of them inside nodes/")


if __name__ == "__main__":
    main()
