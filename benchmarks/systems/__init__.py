"""One adapter per queue system, found by its name; an adapter imports its peer only when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from benchmarks.systems.base import Missing, Producer, System

MODULES: Mapping[str, str] = {
    "raw": "raw",
    "packhorse": "packhorse",
    "dramatiq-stub": "dramatiq_stub",
    "dramatiq-redis": "dramatiq_redis",
    "pgqueuer": "pgqueuer",
    "procrastinate": "procrastinate",
    "graphile-worker": "graphile_worker",
}


def adapter(name: str) -> type[System]:
    """The class `Adapter` of a system. Raises Missing, with the reason, when its peer is not installed."""
    try:
        module = import_module(f"benchmarks.systems.{MODULES[name]}")
    except ModuleNotFoundError as error:
        raise Missing(f"the Python package {error.name!r} is not installed") from error
    found: type[System] = module.Adapter
    return found


def make_producer(name: str, url: str) -> Producer:
    """A connected producer of a system. url: the store to write to."""
    return adapter(name).make_producer(url)
