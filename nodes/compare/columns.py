"""What stands above each column of a comparison when the user wrote nothing."""

from comfy.model_patcher import ModelPatcher

from ..host import attached

INPUT = "models"


def labels(written: str, models: dict[str, object], prompt: dict | None, node_id: str | None) -> list[str]:
    """One label for each column, no two the same: the user's line, else the guidances on the model, else the title of
    the node that it comes from, else its number.

    written: one line a column; an empty line leaves that column to the rest of the rule. prompt: as it was queued.
    """
    lines = [line.strip() for line in written.splitlines()]
    found: list[str] = []
    for number, (slot, model) in enumerate(models.items()):
        line = lines[number] if number < len(lines) else ""
        label = line or _guidances(model) or _title(slot, prompt, node_id) or f"column {number + 1}"
        again, name = 2, label
        while name in found:
            name, again = f"{label} ({again})", again + 1
        found.append(name)
    return found


def _guidances(model: object) -> str:
    patcher = model if isinstance(model, ModelPatcher) else getattr(model, "model_patcher", None)
    return "" if patcher is None else " + ".join(_with_weight(guidance) for guidance in attached(patcher))


def _with_weight(guidance) -> str:
    settings = getattr(guidance, "settings", guidance)
    weight = getattr(settings, "weight", getattr(settings, "strength", None))
    return guidance.name if weight is None else f"{guidance.name} {weight:g}"


def _title(slot: str, prompt: dict | None, node_id: str | None) -> str:
    """The title of the node that is wired to this column; empty where the prompt does not tell."""
    try:
        source = prompt[node_id]["inputs"][f"{INPUT}.{slot}"][0]
        return str(prompt[source].get("_meta", {}).get("title") or prompt[source]["class_type"])
    except (KeyError, TypeError, IndexError):
        return ""
