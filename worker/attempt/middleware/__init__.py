"""Middleware of our own, one concern per file; `default_middleware` is dramatiq's six with five replaced."""

from __future__ import annotations

from dramatiq.middleware import Middleware, ShutdownNotifications

from packhorse.worker.attempt.middleware.age_limit import AgeLimit
from packhorse.worker.attempt.middleware.follow_ups import Callbacks, Pipelines
from packhorse.worker.attempt.middleware.retries import Retries
from packhorse.worker.attempt.middleware.time_limits import TimeLimits


class Checked(Middleware):
    """A middleware without which a worker process of ours could not work: asked before it starts, and before
    a reload stops the old ones.
    """

    def check(self) -> None:
        """Raise ConfigError when a process of this code and this configuration could not work. Looks at no
        database.
        """
        raise NotImplementedError


def default_middleware() -> list[Middleware]:
    """A fresh list: AgeLimit, TimeLimits, ShutdownNotifications, Callbacks, Pipelines, Retries."""
    return [AgeLimit(), TimeLimits(), ShutdownNotifications(), Callbacks(), Pipelines(), Retries()]


__all__ = ["AgeLimit", "Callbacks", "Checked", "Pipelines", "Retries", "TimeLimits", "default_middleware"]
