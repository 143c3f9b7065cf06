"""Every call of a logger below worker/ and schedules/ is an event of the registry, with its level and exactly
its keys.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from packhorse.worker.observe.events import EVENTS
from packhorse.worker.observe.logging import _parse
from tests.support.sources import FILES, TOP, nodes

LEVELS = {"debug", "info", "warning", "error", "critical", "exception", "log"}


def calls() -> Iterator[tuple[str, str, object]]:
    """(place, level, template or None when it is not a literal) of every call of a logger."""
    for path in FILES:
        for node in nodes(path):
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
                yield f"{path.relative_to(TOP)}:{node.lineno}", level, template


def problem(level: str, template: object) -> str | None:
    """What is wrong with such a call."""
    if not isinstance(template, str):
        return "the template must be a literal"
    parsed = _parse(template)
    if parsed is None:
        return f"{template!r} does not begin with an event name"
    name, keys = parsed
    if name not in EVENTS:
        return f"{name} is not in worker/observe/events.py"
    if {key for key, *_ in keys} - {"note"} != set(EVENTS[name].keys):
        return f"{name} has other keys than in the registry"
    return None if level == EVENTS[name].level else f"{name} has another level than in the registry"


def test_a_log_call_is_an_event_of_the_registry():
    wrong = [f"{place}: {found}" for place, level, template in calls() if (found := problem(level, template))]
    assert wrong == []


def test_every_event_of_the_registry_is_logged_somewhere():
    logged = {
        parsed[0] for _, _, template in calls() if isinstance(template, str) and (parsed := _parse(template))
    }
    assert set(EVENTS) - logged == {"log_line_failed"}, "written by the handler itself"


def test_loggers_are_called_logger_and_belong_to_packhorse():
    """Else the calls above would be missed."""
    for path in FILES:
        for node in nodes(path):
            if (
                isinstance(node, ast.Assign)
                and isinstance(node.value, ast.Call)
                and ast.unparse(node.value.func) == "logging.getLogger"
                and node.value.args
            ):
                assert ast.unparse(node.targets[0]) == "logger", path
                assert ast.literal_eval(node.value.args[0]).startswith("packhorse."), path


def test_there_are_enough_calls_to_believe_the_test():
    assert len(list(calls())) > 90 and {call[0].split("/")[0] for call in calls()} == {"worker", "schedules"}
