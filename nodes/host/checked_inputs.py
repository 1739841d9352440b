"""One check of what a node is given, for all nodes of the pack.

ComfyUI checks numbers and choices of a prompt, but not everything: over its API a number can stand where a MODEL
belongs, an option can be one that does not exist, and what was wired to another option can still be there. Without this
check each of them ends in an error of Python somewhere inside.
"""

import contextlib
import functools
import inspect
import math

import torch

from .._api import io

_DYNAMIC = (io.DynamicCombo.Input, io.Autogrow.Input)
_PLAIN = (int, float, str, bool, bytes, list, dict)  # what JSON can say


def checked(node: type[io.ComfyNode]) -> type[io.ComfyNode]:
    """The node, whose `execute` and `validate_inputs` now refuse inputs that are not those of its schema, in one
    sentence. Asking twice changes nothing.
    """
    execute = node.__dict__.get("execute")
    inner = getattr(execute, "__func__", None)
    if inner is None or getattr(inner, "checks_inputs", False):
        return node

    if inspect.iscoroutinefunction(inner):

        @functools.wraps(inner)
        async def wrapper(cls, *args, **inputs):
            _check_all(node, inner, args, inputs)
            with _empty_is_said(node, inner, args, inputs):
                return await inner(cls, *args, **inputs)
    else:

        @functools.wraps(inner)
        def wrapper(cls, *args, **inputs):
            _check_all(node, inner, args, inputs)
            with _empty_is_said(node, inner, args, inputs):
                return inner(cls, *args, **inputs)

    wrapper.checks_inputs = True
    node.execute = classmethod(wrapper)
    if "validate_inputs" in node.__dict__:
        node.validate_inputs = classmethod(_validator(node, node.__dict__["validate_inputs"].__func__))
    return node


def _validator(node: type[io.ComfyNode], inner):
    """`validate_inputs` of a node, which ComfyUI also calls with values that it has refused itself."""

    @functools.wraps(inner)
    def wrapper(cls, *args, **inputs):
        try:
            name, known = _inputs_of(node)
            for key, value in inputs.items():
                # A choice comes as its bare name here, and its inputs not at all.
                if key in known and value is not None and not isinstance(known[key], _DYNAMIC):
                    _check_value(name, key, known[key].get_io_type(), value, finite=False)
        except ValueError as error:
            return str(error)
        return inner(cls, *args, **inputs)

    wrapper.__signature__ = inspect.signature(inner)  # ComfyUI asks which inputs it takes
    return wrapper


@functools.cache
def _inputs_of(node: type[io.ComfyNode]) -> tuple[str, dict[str, io.Input]]:
    schema = node.define_schema()
    return schema.display_name or schema.node_id, {each.id: each for each in schema.inputs}


@functools.cache
def _takes_lists(node: type[io.ComfyNode]) -> bool:
    """Whether every input of the node is a list of values."""
    return node.define_schema().is_input_list


def _check_all(node: type[io.ComfyNode], execute, args: tuple, inputs: dict) -> None:
    name, known = _inputs_of(node)
    parameters = inspect.signature(execute).parameters
    given = {**dict(zip(list(parameters)[1:], args)), **inputs}
    listed = _takes_lists(node)
    for key, value in given.items():
        if key in known:
            for each in value if listed and isinstance(value, (list, tuple)) else [value]:
                _check(name, key, known[key], each)
        else:
            parent = key.rpartition(".")[0].partition(".")[0]
            if parent in known:
                raise ValueError(
                    f"{name}: {key[:60]!r} does not belong to what is chosen in '{parent}': disconnect it, or choose "
                    f"the option that it belongs to."
                )
            raise ValueError(f"{name} has no input {key[:60]!r}: remove it from the prompt.")
    for key, parameter in list(parameters.items())[1:]:
        if key in known and key not in given and parameter.default is parameter.empty:
            raise ValueError(f"{name}: '{key}' is missing{_choices(known[key])}.")


@contextlib.contextmanager
def _empty_is_said(node: type[io.ComfyNode], execute, args: tuple, inputs: dict):
    """A node that has no words of its own for a required input that is empty, and trips over it, says this."""
    try:
        yield
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        name, known = _inputs_of(node)
        given = {**dict(zip(list(inspect.signature(execute).parameters)[1:], args)), **inputs}
        for key, value in given.items():
            if value is None and key in known and not known[key].optional:
                raise ValueError(f"{name}: '{key}' is empty: connect or give {_wanted(known[key])}.") from error
        raise


def _wanted(one: io.Input) -> str:
    kind = one.get_io_type()
    names = {"INT": "a number", "FLOAT": "a number", "STRING": "a text", "COMBO": "one of its choices"}
    return names.get(kind, f"a {kind}" if kind.isupper() else "a value")


def _choices(one: io.Input) -> str:
    if isinstance(one, io.DynamicCombo.Input):
        return f": choose one of {', '.join(option.key for option in one.options)}"
    return ""


def _check(name: str, key: str, one: io.Input, value: object) -> None:
    """ValueError when a value cannot be that input's. None is left to the node: a loader gave nothing."""
    if value is None:
        return
    if isinstance(one, io.DynamicCombo.Input):
        _check_option(name, key, one, value)
    elif isinstance(one, io.Autogrow.Input):
        if not isinstance(value, dict):
            raise ValueError(f"{name}: {_shown(value)} stands in '{key}': connect one node for each of its inputs.")
        template = one.template.input
        for each, item in value.items():
            _check(name, f"{key}.{each}", template, item)
    else:
        _check_value(name, key, one.get_io_type(), value)


def _check_option(name: str, key: str, one: io.DynamicCombo.Input, value: object) -> None:
    keys = {option.key: option for option in one.options}
    last = key.rpartition(".")[2]
    chosen = value.get(last) if isinstance(value, dict) else value
    if not isinstance(value, dict) or not isinstance(chosen, str) or chosen not in keys:
        raise ValueError(f"{name} does not know this {last} ({_shown(chosen)}): choose one of {', '.join(keys)}.")
    inputs = {each.id: each for each in keys[chosen].inputs}
    for each, item in value.items():
        if each == last:
            continue
        if each in inputs:
            _check(name, f"{key}.{each}", inputs[each], item)


def _check_value(name: str, key: str, kind: str, value: object, finite: bool = True) -> None:
    if kind in ("INT", "FLOAT"):
        if not isinstance(value, (int, float)):
            raise ValueError(f"{name}: {_shown(value)} stands in '{key}', where a number belongs.")
        if finite and isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {key} is {value}; give a finite number.")
    elif kind in ("STRING", "COMBO"):
        if not isinstance(value, str):
            raise ValueError(f"{name}: {_shown(value)} stands in '{key}', where a text belongs.")
    elif kind not in ("BOOLEAN", "*") and not _fits(kind, value):
        raise ValueError(f"{name}: {_shown(value)} stands in '{key}', where a {kind} belongs: connect one.")


def _fits(kind: str, value: object) -> bool:
    if kind == "LATENT":
        return isinstance(value, dict) and not isinstance(value.get("samples"), (*_PLAIN, type(None)))
    if kind == "CONDITIONING":
        return isinstance(value, list) and bool(value) and all(
            isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], dict)
            and isinstance(pair[0], (torch.Tensor, type(None))) for pair in value
        )  # fmt: skip
    if kind == "CURVE":
        return isinstance(value, dict) or not isinstance(value, _PLAIN)
    if kind in ("IMAGE", "MASK"):
        return isinstance(value, torch.Tensor)
    return not isinstance(value, _PLAIN)


def _shown(value: object) -> str:
    if isinstance(value, (bool, int, float, str)):
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a very long number"
        return text if len(text) <= 60 else text[:57] + "..."
    if isinstance(value, list) and not value:
        return "an empty list"
    names = {dict: "a dictionary", list: "a list", type(None): "nothing", torch.Tensor: "a picture or a tensor"}
    return names.get(type(value), f"a {type(value).__name__}")
