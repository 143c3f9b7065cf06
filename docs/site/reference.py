"""The reference of the Python API, as one Markdown page, from signatures and docstrings (SPEC N1)."""

from __future__ import annotations

import importlib.util
import inspect
import re
import typing
from collections.abc import Iterator
from typing import Any

#: What applications import; those that this installation does not have are left out.
MODULES = ("packhorse", "packhorse.calls", "packhorse.platform", "packhorse.schedules", "packhorse.testing")

#: Methods of public classes that other parts of Packhorse, or dramatiq, call.
INTERNAL = {
    "PostgresBroker": "after_fork settings pool configure url place enqueue_on encoded enqueue_hooks ensure_queue consume",
    "RemoteService": "begin_probe end_probe first_that_answers refusal after_fork",
    "ServiceCall": "spends_no_attempt",
    "ServiceRegistry": "after_fork read_toml named_by away begin_probe end_probe gated",
    "Schedule": "trigger",
}

HEAD = """# Python API

Everything that an application imports. Names that are not here may change in any release. What a name is for stands on the pages of the
[index](index.md); here stand shapes, units and errors.

"""


def modules() -> list[Any]:
    """The public modules that are there."""
    return [importlib.import_module(name) for name in MODULES if importlib.util.find_spec(name) is not None]


def page() -> str:
    """The whole page."""
    return HEAD + "\n".join(_section(module) for module in modules())


def _section(module: Any) -> str:
    shown: set[type] = set()
    names = sorted(module.__all__, key=lambda name: (name.isupper(), name[0].isupper(), name.lower()))
    entries = "\n".join(entry(module.__name__, name, getattr(module, name), shown) for name in names)
    return f"## {module.__name__}\n\n{_text(inspect.getdoc(module) or '')}\n\n{entries}"


def entry(module: str, name: str, value: Any, shown: set[type]) -> str:
    """One public name: its signature, its docstring, and of a class its own public methods. shown: typed
    options that stand on the page already.
    """
    parts = [f"### {name}\n"]
    if inspect.isclass(value):
        own = vars(value).get("__init__")
        made = _signature(value.__name__, own, skip=1) if inspect.isfunction(own) else value.__name__
        bases = [
            f"{base.__module__.split('.')[0]}.{base.__name__}"
            for base in value.__bases__
            if base is not object
        ]
        parts.append(_code(f"class {module}.{made}" + (f"  # base: {bases[0]}" if bases else "")))
        parts.append(_text(inspect.getdoc(value) or ""))
        parts += [_method(name, key, member) for key, member in members(value)]
    elif callable(value):
        begin = "async " if inspect.iscoroutinefunction(value) else ""
        written = typing.get_overloads(value) or [value]
        parts.append(_code("\n".join(begin + _signature(f"{module}.{name}", each) for each in written)))
        parts.append(_text(inspect.getdoc(value) or ""))
        parts += [
            _options(options) for each in written for options in _unpacked(each) if options not in shown
        ]
        shown.update(options for each in written for options in _unpacked(each))
    else:
        parts.append(_code(f"{module}.{name} = {value!r}"))
    return "\n".join(part for part in parts if part) + "\n"


def members(kind: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties that the class itself defines and documents."""
    for name, member in vars(kind).items():
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        internal = name.startswith("_") or name in INTERNAL.get(kind.__name__, "").split()
        if not internal and inspect.isfunction(function) and function.__doc__:
            yield name, member


def _method(owner: str, name: str, member: Any) -> str:
    if isinstance(member, property):
        return _code(f"{owner}.{name}") + "\n" + _text(inspect.getdoc(member) or "")
    function = getattr(member, "__func__", member)
    begin = "async " if inspect.iscoroutinefunction(function) else ""
    return (
        _code(
            begin + _signature(f"{owner}.{name}", function, skip=0 if isinstance(member, staticmethod) else 1)
        )
        + "\n"
        + _text(inspect.getdoc(function) or "")
    )


def _signature(name: str, function: Any, skip: int = 0) -> str:
    """Annotations as they are written; a long one with a parameter per line."""
    found = inspect.signature(function)
    parameters = list(found.parameters.values())[skip:]
    texts = []
    for before, parameter in zip([None, *parameters], parameters, strict=False):
        if before is not None and before.kind is before.POSITIONAL_ONLY is not parameter.kind:
            texts.append("/")
        if parameter.kind is parameter.KEYWORD_ONLY and (
            before is None or before.kind not in (before.KEYWORD_ONLY, before.VAR_POSITIONAL)
        ):
            texts.append("*")
        texts.append(_parameter(parameter))
    nothing = found.return_annotation in (inspect.Signature.empty, "None", None)
    returns = "" if nothing else f" -> {_annotation(found.return_annotation)}"
    line = f"{name}({', '.join(texts)}){returns}"
    return line if len(line) <= 100 else f"{name}(\n    " + ",\n    ".join(texts) + f",\n){returns}"


def _parameter(parameter: inspect.Parameter) -> str:
    star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    if parameter.annotation is parameter.empty:
        return (
            star
            + parameter.name
            + ("" if parameter.default is parameter.empty else f"={_default(parameter.default)}")
        )
    typed = f"{star}{parameter.name}: {_annotation(parameter.annotation)}"
    return typed if parameter.default is parameter.empty else f"{typed} = {_default(parameter.default)}"


def _default(value: Any) -> str:
    """As one would write it; an object that has no such text as `...`."""
    return "..." if repr(value).startswith("<") else repr(value)


def _annotation(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _unpacked(function: Any) -> Iterator[type]:
    """Typed options that stand behind `**options`."""
    for parameter in inspect.signature(function).parameters.values():
        match = re.fullmatch(r"Unpack\[(\w+)\]", str(parameter.annotation).strip("'"))
        if match:
            yield vars(inspect.getmodule(function))[match[1]]


def _options(options: type) -> str:
    lines = "\n".join(f"{name}: {_plain(kind)}" for name, kind in options.__annotations__.items())
    return f"{options.__name__}:\n\n" + _code(lines)


def _plain(kind: Any) -> str:
    return str(getattr(kind, "__forward_arg__", kind))


def _code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def _text(doc: str) -> str:
    """A docstring as Markdown: what stands in backticks is code, all else is plain text. Numbers of the
    specification are not for readers.
    """
    doc = re.sub(r" \(SPEC [^)]*\)", "", doc)
    parts = re.split(r"(``[^`]+``|`[^`]+`)", doc)
    return (
        "".join(
            part if part.startswith("`") else re.sub(r"([*_<>\[\]{}|\\#])", r"\\\1", part) for part in parts
        )
        + "\n"
    )


if __name__ == "__main__":
    print(page())
