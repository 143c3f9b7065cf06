"""Handlers and middleware that do with their payload all that careless code does
(tests/support/hostile.py).
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import dramatiq
import structlog

import packhorse
from packhorse.worker.observe.logging import OurLogger
from packhorse.worker.observe.repeats import Repeats
from tests.support.hostile import FORGED

log = logging.getLogger("hostile")
if os.environ.get("HOSTILE_EVERY_LINE"):  # no line is left out as a repeat
    for handler in (*logging.getLogger().handlers, OurLogger.lines):
        if handler is not None:
            handler.filters[:] = [part for part in handler.filters if not isinstance(part, Repeats)]


class Nosy(dramatiq.Middleware):
    """Every hook fails with the payload in its text."""

    def before_process_message(self, broker: Any, message: Any) -> None:
        if message.kwargs.get("how") == "nosy":
            raise ValueError(f"before {message.kwargs}")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        if message.kwargs.get("how") == "nosy":
            raise LookupError(message.kwargs) from ValueError(str(message.kwargs))

    def after_ack(self, broker: Any, message: Any) -> None:
        if getattr(message, "kwargs", {}).get("how") == "nosy":
            raise KeyError(message.kwargs["key"])


dramatiq.get_broker().add_middleware(Nosy())


class Mute(Exception):
    """Cannot be printed."""

    def __str__(self) -> str:
        raise RuntimeError(str(self.args))


class Leaving:
    """Raises with what it holds when it is forgotten."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __del__(self) -> None:
        raise ValueError(self.text)


def says(about: str, **_: Any) -> None:
    """Its own lines carry personal data, never a mark: what a handler logs is its own affair, masked."""
    log.warning("about %s", about)
    log.warning(f"about {about}", extra={"password": about})
    log.error(about.encode())
    log.error({"a": about, "token": about})
    log.error("%s %s", *[about])  # arguments that do not fit
    log.error('x\n{"event": "' + FORGED + '"}')
    structlog.get_logger("hostile").info(about, phone=about, api_key=about, nested={about: [about]})
    try:
        raise ValueError(about) from KeyError(about)
    except ValueError:
        log.exception("failed for %s", about)


def returns(**payload: Any) -> dict[str, Any]:
    return payload


def warns(key: str, about: str, **_: Any) -> None:
    warnings.warn(f"careless {about}", stacklevel=2)


def thread(**payload: Any) -> None:
    def fail() -> None:
        raise ValueError(f"in a thread: {payload}")

    started = threading.Thread(target=fail, name=payload["key"])
    started.start()
    started.join()


def finalizer(**payload: Any) -> None:
    Leaving(str(payload))


def plain(**payload: Any) -> None:
    raise ValueError(f"cannot handle {payload}")


def cause(**payload: Any) -> None:
    error: BaseException = ValueError(str(payload))
    for _ in range(50):
        try:
            raise RuntimeError(payload["about"]) from error
        except RuntimeError as raised:
            error = raised
    raise LookupError(payload["key"]) from error


def context(**payload: Any) -> None:
    try:
        raise ValueError(str(payload))
    except ValueError:
        raise KeyError(payload["key"])


def group(**payload: Any) -> None:
    raise ExceptionGroup(
        str(payload),
        [ValueError(payload["key"]), ExceptionGroup(payload["about"], [KeyError(payload["key"])])],
    )


def noted(**payload: Any) -> None:
    error = ValueError("see the notes")
    error.add_note(str(payload))
    raise error


def frames(**payload: Any) -> None:
    secret = payload["key"]  # noqa: F841 (a local variable)
    raise ValueError


def endless(**payload: Any) -> None:
    endless(**payload)


def mute(**payload: Any) -> None:
    raise Mute(payload)


def renamed(**payload: Any) -> None:
    raise type("Error\n" + FORGED + "\x1b[2J" + "x" * 5000, (Exception,), {})(payload["key"])


def cancels(**payload: Any) -> None:
    raise packhorse.Cancel(str(payload))


def buries(**payload: Any) -> None:
    raise packhorse.Bury(str(payload))


def system_exit(**payload: Any) -> None:
    sys.exit(str(payload))


def nosy(**_: Any) -> None:
    """Its middleware fails instead."""


@dramatiq.actor(queue_name="default", actor_name="hostile", max_retries=0)
def hostile(*args: Any, how: str, **payload: Any) -> Any:
    outcome: Callable[..., Any] = globals()[how]
    return outcome(**payload)


@dramatiq.actor(queue_name="default", actor_name="strict", max_retries=0)
def strict(only: int) -> None:
    """Its TypeError names the keys of the payload."""
