"""What a saved workflow relies on in a node, and which changes of it break saved workflows."""


def snapshot(object_info: dict) -> dict:
    """The part of /object_info that saved workflows rely on, for the nodes of this pack."""
    return {name: _node(info) for name, info in sorted(object_info.items()) if name.startswith("GuidanceLab_")}


def _node(info: dict) -> dict:
    return {
        "inputs": _inputs(info["input"]),
        "outputs": [list(pair) for pair in zip(info["output"], info["output_name"])],
    }


def _inputs(kinds: dict) -> dict:
    return {
        name: {"kind": kind, **_input(spec)}
        for kind in ("required", "optional")
        for name, spec in kinds.get(kind, {}).items()
    }


def _input(spec: list) -> dict:
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    entry = {"type": "COMBO" if isinstance(kind, list) else kind}
    choices = kind if isinstance(kind, list) else options.get("options")
    if choices and isinstance(choices[0], dict):  # dynamic combo: every option has inputs of its own
        entry["options"] = [choice["key"] for choice in choices]
        entry["nested"] = {choice["key"]: _inputs(choice["inputs"]) for choice in choices}
    elif choices and not options.get("remote"):
        entry["options"] = list(choices)
    if "default" in options:
        entry["default"] = options["default"]
    return entry


def breaks(old: dict, new: dict) -> list[str]:
    """Every way in which `new` breaks a workflow that was saved with `old`; both come from `snapshot`."""
    problems = []
    for name, node in old.items():
        if name not in new:
            problems.append(f"{name}: node removed")
            continue
        problems += [f"{name}: {problem}" for problem in _input_breaks(node["inputs"], new[name]["inputs"])]
        if new[name]["outputs"][: len(node["outputs"])] != node["outputs"]:
            problems.append(f"{name}: outputs {node['outputs']} became {new[name]['outputs']}")
    return problems


def _input_breaks(old: dict, new: dict) -> list[str]:
    problems = []
    for name, before in old.items():
        after = new.get(name)
        if after is None:
            problems.append(f"input {name} removed")
            continue
        for key in ("type", "kind", "default"):
            if before.get(key) != after.get(key):
                problems.append(f"input {name}: {key} {before.get(key)!r} became {after.get(key)!r}")
        options = before.get("options", [])
        if after.get("options", [])[: len(options)] != options:
            problems.append(f"input {name}: options {options} became {after.get('options')}")
        for option, nested in before.get("nested", {}).items():
            if option in after.get("nested", {}):
                problems += [
                    f"input {name}.{option}: {problem}" for problem in _input_breaks(nested, after["nested"][option])
                ]
    for kind in ("required", "optional"):
        before = [name for name in old if old[name]["kind"] == kind]
        after = [name for name in new if new[name]["kind"] == kind]
        if set(before) <= set(after) and after[: len(before)] != before:
            problems.append(f"{kind} inputs reordered: {before} became {after}")
    problems += [f"new required input {name}" for name in new if name not in old and new[name]["kind"] == "required"]
    return problems
