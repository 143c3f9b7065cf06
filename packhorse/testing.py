"""For an application's own tests: handlers without a server, what was sent, a real queue (SPEC W12); docs/testing.md.

Names are looked up when they are used, as in `packhorse`. The pytest plugin comes with the installation and needs no import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from packhorse.worker.testing.captured import SentMessage, SentMessages, captured
    from packhorse.worker.testing.connections import FakeAsyncConnection, FakeConnection
    from packhorse.worker.testing.queue import PackhorseDatabase, PackhorseQueue
    from packhorse.worker.testing.report import MessageReport, QueueNotEmpty, RunReport
    from packhorse.worker.testing.steps import MemorySteps
    from packhorse.worker.testing.stub import PackhorseStubBroker, stub_broker
    from packhorse.worker.testing.unit import fake_message, run_actor, run_actor_async

_HOMES = {
    "FakeAsyncConnection": "connections",
    "FakeConnection": "connections",
    "MemorySteps": "steps",
    "MessageReport": "report",
    "PackhorseStubBroker": "stub",
    "QueueNotEmpty": "report",
    "RunReport": "report",
    "SentMessage": "captured",
    "SentMessages": "captured",
    "PackhorseDatabase": "queue",
    "PackhorseQueue": "queue",
    "captured": "captured",
    "fake_message": "unit",
    "run_actor": "unit",
    "run_actor_async": "unit",
    "stub_broker": "stub",
}

__all__ = [
    "FakeAsyncConnection",
    "FakeConnection",
    "MemorySteps",
    "MessageReport",
    "PackhorseDatabase",
    "PackhorseQueue",
    "PackhorseStubBroker",
    "QueueNotEmpty",
    "RunReport",
    "SentMessage",
    "SentMessages",
    "captured",
    "fake_message",
    "run_actor",
    "run_actor_async",
    "stub_broker",
]


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"packhorse.worker.testing.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
