"""Middleware of our own, one concern per file; `default_middleware` is dramatiq's six with four replaced."""

from __future__ import annotations

from dramatiq.middleware import AgeLimit, Middleware, ShutdownNotifications

from worker.middleware.following import Callbacks, Pipelines
from worker.middleware.retries import Retries
from worker.middleware.time_limits import TimeLimits


def default_middleware() -> list[Middleware]:
    """A fresh list: AgeLimit, TimeLimits, ShutdownNotifications, Callbacks, Pipelines, Retries."""
    return [AgeLimit(), TimeLimits(), ShutdownNotifications(), Callbacks(), Pipelines(), Retries()]


__all__ = ["Callbacks", "Pipelines", "Retries", "TimeLimits", "default_middleware"]
