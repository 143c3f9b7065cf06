"""Every call of a logger below worker/ and schedules/ is an event of the registry, with its level and exactly
its keys.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from packhorse.worker.observe.events import EVENTS
from packhorse.worker.observe.logging import _parse

ROOT = Path(__file__).parent.parent.parent
FILES = sorted(path for folder in ("worker", "schedules") for path in (ROOT / folder).rglob("*.py"))
LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def calls() -> Iterator[tuple[str, str, object]]:
    """(place, level, template or None when it is not a literal) of every call of a logger."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr in LEVELS
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id == "logger"
            ):
                level, arguments = node.func.attr, node.args
                if level == "log":
                    level, arguments = "varies", node.args[1:]
                template = (
                    arguments[0].value if arguments and isinstance(arguments[0], ast.Constant) else None
                )
                yield f"{path.relative_to(ROOT)}:{node.lineno}", level, template


CALLS = list(calls())


@pytest.mark.parametrize(("place", "level", "template"), CALLS, ids=[call[0] for call in CALLS])
def test_a_log_call_is_an_event_of_the_registry(place, level, template):
    assert isinstance(template, str), f"{place}: the template must be a literal"
    parsed = _parse(template)
    assert parsed is not None, f"{place}: {template!r} does not begin with an event name"
    name, keys = parsed
    assert name in EVENTS, f"{place}: {name} is not in worker/observe/events.py"
    assert {key for key, *_ in keys} - {"note"} == set(EVENTS[name].keys), place
    assert level == EVENTS[name].level, place


def test_every_event_of_the_registry_is_logged_somewhere():
    logged = {
        parsed[0] for _, _, template in CALLS if isinstance(template, str) and (parsed := _parse(template))
    }
    assert set(EVENTS) - logged == {"log_line_failed"}, "written by the handler itself"


def test_loggers_are_called_logger_and_belong_to_packhorse():
    """Else the calls above would be missed."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "logging.getLogger"
                and node.value.args
            ):
                assert ast.unparse(node.targets[0]) == "logger", path
                assert ast.literal_eval(node.value.args[0]).startswith("packhorse."), path


def test_there_are_enough_calls_to_believe_the_test():
    assert len(CALLS) > 90 and {call[0].split("/")[0] for call in CALLS} == {"worker", "schedules"}
