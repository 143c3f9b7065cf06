"""The reference of the Python API is whole: every public name, what it takes and what it raises (SPEC N1)."""

from __future__ import annotations

import importlib.util
import inspect
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SITE = Path(__file__).resolve().parents[2] / "docs" / "site"
spec = importlib.util.spec_from_file_location("packhorse_reference", SITE / "reference.py")
assert spec is not None and spec.loader is not None
reference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reference)

PAGE = reference.page()
#: Arguments that need no word: they are the function's own, or their name says it.
PLAIN = {"self", "cls", "message_type", "args", "kwargs", "message", "reason", "connection", "fn"}
#: A docstring that says what differs from another one, whose words hold.
LIKE_ANOTHER = re.compile(r"^(As |The same |`\w+` awaited)|\b[Aa]s (for|with) \w+\(|, like \w+")


def public() -> Iterator[tuple[str, Any]]:
    """Every public name, and every public method of a public class."""
    for module in reference.modules():
        for name in module.__all__:
            value = getattr(module, name)
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for member, function in reference.members(value):
                    yield f"{module.__name__}.{name}.{member}", getattr(function, "__func__", function)


PUBLIC = dict(public())
CALLED = {name: value for name, value in PUBLIC.items() if inspect.isroutine(value)}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_a_sentence_in_the_reference(name: str) -> None:
    value = PUBLIC[name]
    if not callable(value) and not isinstance(value, property):
        assert f"{name} = " in PAGE
        return
    first = (inspect.getdoc(value) or "").split("\n")[0]
    assert first and reference._text(first).strip() in PAGE
    inherited = inspect.isclass(value) and "__doc__" in vars(value) and value.__doc__ is None
    assert not inherited, "a docstring of its own"


@pytest.mark.parametrize("name", CALLED)
def test_a_function_says_what_each_argument_is(name: str) -> None:
    value = CALLED[name]
    doc = inspect.getdoc(value) or ""
    if LIKE_ANOTHER.search(doc):
        return
    found = [inspect.signature(each) for each in typing.get_overloads(value) or [value]]
    names = {parameter for each in found for parameter in each.parameters} - PLAIN
    assert sorted(parameter for parameter in names if not re.search(rf"\b{parameter.rstrip('s')}", doc)) == []


def test_the_options_of_enqueue_and_of_an_actor_stand_there_once() -> None:
    assert PAGE.count("\nconversation_key: str | None") == 1 and PAGE.count("\nfailure_breaker: int") == 1


def test_the_page_has_no_name_without_a_word_and_names_no_private_module() -> None:
    bare = re.findall(r"^### (\w+)\n+```python\n.*\n```\n+(?=#|\Z)", PAGE, re.MULTILINE)
    assert bare == ["TIMEOUTS_MS"], "only a constant says all by its value"
    assert "packhorse.worker" not in PAGE, "a public signature names a public class, by its name"


@pytest.mark.parametrize("name", CALLED)
def test_a_function_that_raises_says_what(name: str) -> None:
    source = inspect.getsource(inspect.unwrap(CALLED[name]))
    doc = inspect.getdoc(CALLED[name]) or ""
    if re.search(r"^ +raise (?!error$)\w", source.replace(doc, ""), re.MULTILINE) and not LIKE_ANOTHER.search(
        doc
    ):
        assert re.search(r"[Rr]aise[sd]?\b", doc)
