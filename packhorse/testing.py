"""For an application's own tests: handlers without a server, what was sent, a real queue (SPEC W12);
docs/testing.md.

Names are looked up when they are used, as in `packhorse`. The pytest plugin comes with the installation and
needs no import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from packhorse.worker.lazy import names_of

if TYPE_CHECKING:
    from packhorse.worker.testing.captured import SentMessage, SentMessages, captured
    from packhorse.worker.testing.connections import FakeAsyncConnection, FakeConnection
    from packhorse.worker.testing.queue import PackhorseDatabase, PackhorseQueue
    from packhorse.worker.testing.report import MessageReport, QueueNotEmpty, RunReport
    from packhorse.worker.testing.steps import MemorySteps
    from packhorse.worker.testing.stub import PackhorseStubBroker, stub_broker
    from packhorse.worker.testing.unit import fake_message, run_actor, run_actor_async

_HOMES = {
    "FakeAsyncConnection": "testing.connections",
    "FakeConnection": "testing.connections",
    "MemorySteps": "testing.steps",
    "MessageReport": "testing.report",
    "PackhorseStubBroker": "testing.stub",
    "QueueNotEmpty": "testing.report",
    "RunReport": "testing.report",
    "SentMessage": "testing.captured",
    "SentMessages": "testing.captured",
    "PackhorseDatabase": "testing.queue",
    "PackhorseQueue": "testing.queue",
    "captured": "testing.captured",
    "fake_message": "testing.unit",
    "run_actor": "testing.unit",
    "run_actor_async": "testing.unit",
    "stub_broker": "testing.stub",
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


if not TYPE_CHECKING:  # a type checker knows the names above, and refuses others
    __getattr__, __dir__ = names_of(__name__, __all__, _HOMES)
