"""All settings, each with its bounds and its sentence, and the rules across them (SPEC W11)."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, SecretStr, field_validator, model_validator

from packhorse.worker.clock import TICK_SECONDS
from packhorse.worker.config.amqp import AmqpSettings
from packhorse.worker.config.lists import NameList
from packhorse.worker.config.wakeups import WakeupSettings
from packhorse.worker.config.web import WebSettings

#: Said by the setting and by whoever is asked to trace without the package.
TRACING_NEEDS = "needs the package opentelemetry-api: pip install 'packhorse[otel]'"
#: Of a queue, a message type, a service; for fullmatch.
NAME_PATTERN = r"[A-Za-z_][A-Za-z0-9._-]{0,99}"
#: Blanks, capitals and quotes are welcome; these characters would mean something in the texts that the name
#: is put into.
SCHEMA_PATTERN = r"[^%$\\{}\x00-\x1f]+"


class Settings(WakeupSettings, AmqpSettings, WebSettings):
    """Every setting; the unit is in the name. Environment: PACKHORSE_<NAME>, and DATABASE_URL."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    database_url: SecretStr | None = Field(
        None, description="Connection string of the database (also DATABASE_URL); none: embedded PostgreSQL."
    )
    maintenance_url: SecretStr | None = Field(
        None,
        description="Connection string of the tables' owner for retention and partitions; none: database_url.",
    )
    maintenance_pooler: bool | None = Field(
        None,
        description="maintenance_url goes through a transaction pooler; none: as `pooler`. `false` when it is direct and database_url is not.",
    )
    db_schema: str = Field("packhorse", description="Schema that holds the queue, and nothing else.")
    platform_schema: str = Field(
        "public", description="Schema that holds the tables of the conversation platform."
    )
    actors: NameList = Field((), description="Modules that declare actors, imported by each worker process.")
    app_dir: Path | None = Field(
        None,
        description="Folder with the modules of `actors`, entered by each process at its start; none: the current folder, by its name.",
    )
    queues: NameList = Field(
        (), description="Queues to work on; empty: every queue of the registered actors."
    )
    processes: int = Field(1, ge=1, le=256, description="Worker processes under one parent.")
    threads: int = Field(8, ge=1, le=1024, description="Threads that run handlers, per process.")
    coroutines: int = Field(
        1000, ge=1, le=100000, description="Coroutines of `async def` actors at once, per process."
    )
    async_connections: int = Field(
        8, ge=1, le=1000, description="Coroutines of transactional `async def` actors at once, per process."
    )
    batch_size: int = Field(1000, ge=1, le=5000, description="Most messages a process holds at once.")
    hold_seconds: float = Field(
        1.0,
        ge=0.05,
        le=60,
        description="Claimed messages that could not start for this long are handed back.",
    )
    poll_seconds: float = Field(
        3.0,
        ge=0.01,
        le=300,
        description="An idle worker looks for messages this often, NOTIFY or not; each of many more seldom.",
    )
    lease_seconds: float = Field(
        20.0, ge=2, le=3600, description="Lease of a claimed message; renewed by the heartbeat."
    )
    heartbeat_seconds: float = Field(
        6.0, ge=0.2, le=1200, description="Interval of heartbeats; at most a third of lease_seconds."
    )
    rescue_seconds: float = Field(
        6.0,
        ge=0.2,
        le=600,
        description="Interval of looking for expired leases of any holder; of each of many longer.",
    )
    drain_seconds: float = Field(
        30.0, ge=0, le=86400, description="At SIGTERM: time for running handlers before they are interrupted."
    )
    call_deadline_seconds: float = Field(
        10.0, ge=0.5, le=600, description="Deadline of every database call, enforced on our side."
    )
    connect_timeout_seconds: float = Field(5.0, ge=1, le=120, description="Deadline of opening a connection.")
    time_limit_seconds: float = Field(
        30.0, gt=0, le=86400, description="Soft time limit of actors of class `default`."
    )
    hard_limit_seconds: float = Field(
        10.0, gt=0, le=86400, description="After the soft limit: time until the process is replaced."
    )
    unknown_type_seconds: float = Field(
        3600.0,
        ge=1,
        le=31536000,
        description="Messages of types that no worker registers become dead letters after this.",
    )
    hang_seconds: float = Field(
        30.0,
        ge=1,
        le=86400,
        description="A process is killed and replaced when one of its loops has not ticked for this long.",
    )
    metrics_host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address of metrics and probes; beyond loopback only when said here.",
    )
    metrics_port: int = Field(
        0,
        ge=0,
        le=65535,
        description="Port of metrics and probes, one per `packhorse worker`; by custom 9191. Taken: the next free one of ten. 0: not served.",
    )
    fleet_seconds: float = Field(
        15.0, ge=1, le=3600, description="Queue depths and the like are counted once per fleet this often."
    )
    scale_target_wait_seconds: float = Field(
        30.0,
        gt=0,
        le=86400,
        description="`/scale` asks for as many workers as clear the backlog within this time.",
    )
    max_messages: int = Field(0, ge=0, description="Replace a process after this many messages; 0: never.")
    max_memory_mib: int = Field(
        0, ge=0, description="Replace a process above this resident memory; 0: never."
    )
    data_dir: Path = Field(Path(".packhorse"), description="Where the embedded PostgreSQL keeps its data.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least level that is logged."
    )
    log_outcomes: Literal["failures", "all"] = Field(
        "failures", description="failures: messages that ended well are logged at debug; all: at info."
    )
    log_format: Literal["auto", "json", "console"] = Field(
        "auto", description="auto: console on a terminal, else JSON."
    )
    tracing: bool = Field(
        False, description="OpenTelemetry spans of handlers and of what they enqueue; needs the extra `otel`."
    )

    def of_database(self, url: SecretStr) -> Settings:
        """The same for another database: one of web_databases."""
        return self.model_copy(update={"database_url": url, "maintenance_url": None, "listen_url": None})

    @field_validator("actors")
    @classmethod
    def _module_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            # what a shell completes; an import would look for a package around it
            if name.startswith(".") or "/" in name:
                module = name.removesuffix(".py").strip("./").replace("/", ".")
                raise ValueError(
                    f"{name[:80]!r} is a path, not a module; from the folder that holds it: {module[:80]}"
                )
        return value

    @field_validator("queues")
    @classmethod
    def _queue_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if not re.fullmatch(NAME_PATTERN, name):
                raise ValueError(
                    f"{name[:40]!r} is not a queue name (letter or underscore first, 100 characters at most)"
                )
        return value

    @field_validator("tracing")
    @classmethod
    def _has_opentelemetry(cls, value: bool) -> bool:
        if value and not _is_installed("opentelemetry.trace"):
            raise ValueError(TRACING_NEEDS)
        return value

    @field_validator("database_url", "listen_url", "maintenance_url")
    @classmethod
    def _is_postgres(cls, value: SecretStr | None) -> SecretStr | None:
        text = value.get_secret_value() if value else ""
        if text and not text.startswith(("postgresql://", "postgres://")) and "=" not in text:
            raise ValueError("not a PostgreSQL connection string (postgresql://user@host:5432/database)")
        if (
            text.startswith(("postgresql://", "postgres://"))
            and text.partition("//")[2].partition("/")[0].partition("?")[0].count("@") > 1
        ):
            # libpq takes what follows the first for the host, and quotes it in its errors
            raise ValueError(
                "more than one @ before the database's name; write one that belongs to the password as %40"
            )
        return value if text else None

    @field_validator("data_dir", "app_dir", mode="before")
    @classmethod
    def _is_folder(cls, value: Any) -> Any:
        if isinstance(value, str) and not value.strip():
            raise ValueError("names no folder")
        return Path(value).expanduser() if isinstance(value, str) else value

    @field_validator("db_schema", "platform_schema")
    @classmethod
    def _is_schema(cls, value: str) -> str:
        if value.startswith("pg_") or value == "information_schema":
            raise ValueError("is a schema of PostgreSQL itself")
        if not value or len(value.encode()) > 63:
            raise ValueError("must have 1 to 63 bytes")
        if not re.fullmatch(SCHEMA_PATTERN, value):
            raise ValueError("must not have % $ \\ { } or control characters in it")
        return value

    @model_validator(mode="after")
    def _across(self) -> Settings:
        problems = []
        if self.heartbeat_seconds > self.lease_seconds / 3:
            problems.append(
                f"heartbeat_seconds: {self.heartbeat_seconds} is more than a third of lease_seconds ({self.lease_seconds}); "
                f"set it to {self.lease_seconds / 3:.1f} or less"
            )
        if self.call_deadline_seconds >= self.lease_seconds:
            problems.append(
                f"call_deadline_seconds: {self.call_deadline_seconds} must be below lease_seconds ({self.lease_seconds}), "
                "else one hanging call costs the lease"
            )
        longest_turn = self.call_deadline_seconds + self.connect_timeout_seconds + TICK_SECONDS
        if self.hang_seconds < longest_turn:
            problems.append(
                f"hang_seconds: {self.hang_seconds} is less than call_deadline_seconds + connect_timeout_seconds + {TICK_SECONDS:.0f} "
                f"({longest_turn}): a slow database would look like a hung process"
            )
        problems += self.wakeup_problems()
        problems += self.web_problems()
        if problems:
            raise ValueError("\n".join(problems))
        return self


def _is_installed(module: str) -> bool:
    """Can it be imported? Looks, without running any of its code but the packages above it."""
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:
        return False
