"""What one run measures, read from the environment once; nobody else sees these variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ALL_SYSTEMS = (
    "raw",
    "packhorse",
    "dramatiq-stub",
    "dramatiq-redis",
    "pgqueuer",
    "procrastinate",
    "graphile-worker",
)
ALL_METRICS = (
    "work",
    "enqueue",
    "pickup",
    "backlog",
    "snapshot",
    "idle",
    "memory",
    "maintenance",
    "observability",
    "recovery",
    "producers",
    "waiting",
    "outage",
    "fairness",
    "platform",
    "backfill",
    "bursts",
    "http",
    "push",
    "relay",
    "web",
)
HOME = Path(__file__).resolve().parent.parent


class ConfigError(ValueError):
    """Every problem of the environment at once, one line each."""


@dataclass(frozen=True)
class Settings:
    """One run of the benchmark.

    cases: keys of the only cases to measure, such as waiting/second; none: all of the metrics. messages: size
    of every drain and of every enqueue run; None = the size each system chose for itself. backlog: messages
    that wait behind the measured ones. archived: ended messages beside those of `web`. snapshot_messages: one
    case per entry. at_once: how many coroutines of `waiting` may run at once; None = the number of each cell.
    samples: pickup latencies per run. expired: rows that retention removes. sessions, session_ids: rows that
    backfills move. idle_seconds: length of the idle observation.
    """

    systems: tuple[str, ...] = ALL_SYSTEMS
    metrics: tuple[str, ...] = ALL_METRICS
    cases: tuple[str, ...] = ()
    rounds: int = 3
    messages: int | None = None
    at_once: int | None = None
    backlog: int = 1_000_000
    archived: int = 5_000_000
    snapshot_messages: tuple[int, ...] = (200_000,)
    samples: int = 500
    expired: int = 5_000_000
    sessions: int = 1_000_000
    session_ids: int = 5_000_000
    idle_seconds: float = 20.0
    results: Path = HOME / "results.json"

    def size(self, usual: int) -> int:
        """The number of messages to use where a system would take `usual`."""
        return usual if self.messages is None else self.messages


def from_env(environ: Mapping[str, str]) -> Settings:
    """Read SYSTEMS, METRICS, CASES, ROUNDS, N, BACKLOG, ARCHIVED, SNAPSHOT_MESSAGES, SAMPLES, EXPIRED,
    SESSIONS, SESSION_IDS, IDLE_SECONDS, AT_ONCE and RESULTS.

    An unset or empty variable means its default. Raises ConfigError with all problems.
    """
    problems: list[str] = []
    usual = Settings()

    def number(name: str, default: int | None) -> int | None:
        text = environ.get(name, "").strip()
        if not text:
            return default
        if text.isdigit() and int(text) > 0:
            return int(text)
        problems.append(f"{name}={text!r}: expected a whole number above 0")
        return default

    def names(name: str, known: tuple[str, ...]) -> tuple[str, ...]:
        wanted = tuple(environ.get(name, "").replace(",", " ").split())
        strange = [part for part in wanted if part not in known]
        problems.extend(f"{name}: {part!r} is none of {', '.join(known)}" for part in strange)
        return wanted or known

    def numbers(name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        parts = environ.get(name, "").replace(",", " ").split()
        problems.extend(f"{name}: {part!r} is not a whole number" for part in parts if not part.isdigit())
        return tuple(int(part) for part in parts if part.isdigit()) or default

    settings = Settings(
        systems=names("SYSTEMS", ALL_SYSTEMS),
        metrics=names("METRICS", ALL_METRICS),
        cases=tuple(environ.get("CASES", "").replace(",", " ").split()),
        rounds=number("ROUNDS", usual.rounds) or usual.rounds,
        messages=number("N", None),
        at_once=number("AT_ONCE", None),
        backlog=number("BACKLOG", usual.backlog) or usual.backlog,
        archived=number("ARCHIVED", usual.archived) or usual.archived,
        snapshot_messages=numbers("SNAPSHOT_MESSAGES", usual.snapshot_messages),
        samples=number("SAMPLES", usual.samples) or usual.samples,
        expired=number("EXPIRED", usual.expired) or usual.expired,
        sessions=number("SESSIONS", usual.sessions) or usual.sessions,
        session_ids=number("SESSION_IDS", usual.session_ids) or usual.session_ids,
        idle_seconds=float(number("IDLE_SECONDS", int(usual.idle_seconds)) or usual.idle_seconds),
        results=Path(environ.get("RESULTS", "").strip() or usual.results),
    )
    if problems:
        raise ConfigError("\n".join(problems))
    return settings
