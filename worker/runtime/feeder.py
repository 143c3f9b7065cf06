"""What a worker process knows of whatever feeds its pools and writes their outcomes: the fetcher, and the
consumer of RabbitMQ.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from packhorse.worker.attempt.messages import ClaimedMessage
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.meter import Meter


class Feeder(Protocol):
    """A service (worker/service.py). draining: begin nothing more. quiet: nothing for now. busy_at: when it
    last held something (monotonic). unwritten: messages that were handed back and whose outcome is still to
    be written.
    """

    draining: bool
    quiet: bool
    busy_at: float
    meter: Meter
    ticked: Callable[[float], None]
    noted: Callable[[Exception | None, float], None]

    @property
    def in_flight(self) -> InFlight: ...
    @property
    def unwritten(self) -> int: ...
    def on_finished(self, message: ClaimedMessage, *, starving: bool = False) -> None: ...
    def on_wake(self, queue: str) -> None: ...
    def wake(self) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def wait(self, timeout_seconds: float | None = None) -> bool: ...
