"""Settings: one frozen, validated object from environment and packhorse.toml (SPEC W11).

Nobody else reads the environment. `load_settings` raises ConfigError with every problem at once;
secrets never appear in a message. Order: keyword > environment > TOML file > default.
"""

from __future__ import annotations

import importlib.util
import os
import re
import tomllib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from packhorse.worker.clock import TICK_SECONDS
from packhorse.worker.config_amqp import AmqpSettings
from packhorse.worker.config_wakeups import WakeupSettings
from packhorse.worker.config_web import WebSettings, split
from packhorse.worker.errors import ConfigError
from packhorse.worker.suggest import near_miss

PREFIX = "PACKHORSE_"
#: Variables with our prefix that are none: where the file is, and the database of an application's tests
#: (worker/testing/plugin.py).
NO_SETTINGS = frozenset({"PACKHORSE_CONFIG", "PACKHORSE_TEST_DATABASE_URL"})
MAX_SECRET_BYTES = 65536
#: Tables of packhorse.toml that schedules/config.py, calls/declarations.py and calls/push read.
SECTIONS = ("schedules", "retention", "partitions", "gates", "services", "push")
#: Said by the setting and by whoever is asked to trace without the package.
TRACING_NEEDS = "needs the package opentelemetry-api: pip install 'packhorse[otel]'"
NAME_PATTERN = r"^[A-Za-z_][A-Za-z0-9._-]{0,99}$"
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
    actors: tuple[str, ...] = Field(
        (), description="Modules that declare actors, imported by each worker process."
    )
    app_dir: Path | None = Field(
        None,
        description="Folder with the modules of `actors`, entered by each process at its start; none: the current folder, by its name.",
    )
    queues: tuple[str, ...] = Field(
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

    @field_validator("actors", "queues", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return split(value)

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
        import re

        for name in value:
            if not re.fullmatch(NAME_PATTERN[1:-1], name):
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


#: Settings that may come from a file: systemd credentials, mounted secrets. Other settings are no secrets.
SECRETS = frozenset(
    name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
)


def load_settings(
    environ: Mapping[str, str] | None = None, toml_path: Path | None = None, **overrides: Any
) -> Settings:
    """Build Settings from keywords, environment and TOML; raise ConfigError with all problems.

    environ: default os.environ. toml_path: default PACKHORSE_CONFIG or ./packhorse.toml when it exists.
    """
    environ = os.environ if environ is None else environ
    problems: list[str] = []
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    named = toml_path or (Path(environ["PACKHORSE_CONFIG"]) if environ.get("PACKHORSE_CONFIG") else None)
    path = named or Path("packhorse.toml")
    # a mount whose source was missing leaves a folder; a link may lead nowhere
    if os.path.lexists(path) and not path.is_file():
        problems.append(f"{path}: is there, but is no file that can be read")
    elif path.is_file():
        try:
            values.update(
                (name, value)
                for name, value in tomllib.loads(path.read_text()).items()
                if name not in SECTIONS
            )
            sources.update(dict.fromkeys(values, str(path)))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            problems.append(f"{path}: not readable as TOML: {error}")
    elif named:
        problems.append(f"{path}: no such configuration file")
    _read_environment(environ, values, sources, problems)
    values.update({key: value for key, value in overrides.items() if value is not None})
    for name in [name for name in values if name not in Settings.model_fields]:
        near = near_miss(name, [*Settings.model_fields, *SECTIONS])
        problems.append(
            f"{sources.get(name, name)}: no setting {name!r}" + (f"; did you mean {near!r}?" if near else "")
        )
        del values[name]
    try:
        settings = Settings(**values)
    except ValidationError as error:
        items = error.errors(include_input=False, include_url=False)
        problems.extend(line for item in items for line in _describe(item, sources).splitlines())
        problems.extend(_hidden(values, {str(item["loc"][0]) for item in items if item["loc"]}))
        raise ConfigError(problems) from None
    if problems:
        raise ConfigError(problems)
    return settings


@cache
def own_schema() -> str:
    """The setting db_schema of this process, read once: for calls that have a connection and nothing else.
    Raises ConfigError.
    """
    return load_settings().db_schema


def _read_environment(
    environ: Mapping[str, str], values: dict[str, Any], sources: dict[str, str], problems: list[str]
) -> None:
    """DATABASE_URL, then every variable with our prefix; a secret NAME also from the file that
    PACKHORSE_<NAME>_FILE names.
    """
    if environ.get("DATABASE_URL"):
        values["database_url"] = environ["DATABASE_URL"]
        sources["database_url"] = "DATABASE_URL"
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or variable in NO_SETTINGS:
            continue
        name = variable[len(PREFIX) :].lower()
        secret = name.removesuffix("_file")
        if name.endswith("_file") and secret in SECRETS:
            if variable.removesuffix("_FILE") in environ:
                problems.append(f"{variable}: {variable.removesuffix('_FILE')} is set too; keep one of them")
                continue
            values[secret] = _read_secret(variable, Path(text), problems)
            sources[secret] = variable
        elif text or name not in SECRETS:
            # an empty one, as an unset variable of a compose file leaves it, hides no other source
            values[name] = text
            sources[name] = variable


def _read_secret(variable: str, path: Path, problems: list[str]) -> str | None:
    """The one line of a file that holds a secret; None, and a problem that never shows its content, when
    there is none.
    """
    try:
        with path.open("rb") as file:
            text = file.read(MAX_SECRET_BYTES + 1).decode().strip()
    except OSError as error:
        problems.append(f"{variable}: {path} cannot be read: {error.strerror}")
    except UnicodeDecodeError:
        problems.append(f"{variable}: {path} is not UTF-8 text")
    else:
        if text and len(text.splitlines()) == 1 and len(text) <= MAX_SECRET_BYTES:
            return text
        problems.append(f"{variable}: {path} must hold one line with the value, and nothing else")
    return None


def _hidden(values: dict[str, Any], refused: set[str]) -> list[str]:
    """What is wrong across the settings that are right by themselves; pydantic looks at that only when all of
    them are.
    """
    if not refused:
        return []
    try:
        Settings(**{name: value for name, value in values.items() if name not in refused})
    except ValidationError as error:
        lines = [
            line
            for item in error.errors(include_input=False, include_url=False)
            for line in _describe(item, {}).splitlines()
        ]
        return [line for line in lines if not any(name in line for name in refused)]
    return []


def _describe(item: Any, sources: Mapping[str, str]) -> str:
    """One problem as a sentence: source, field, what is wrong, allowed range; never the value."""
    name = ".".join(str(part) for part in item["loc"]) or "settings"
    where = f" (from {sources[name]})" if name in sources else ""
    text = item["msg"].removeprefix("Value error, ")
    return f"{name}{where}: {text}" if item["loc"] else text


def shown(settings: Settings) -> dict[str, Any]:
    """Settings for people: secrets replaced by their shape."""
    result: dict[str, Any] = {}
    for name in Settings.model_fields:
        value = getattr(settings, name)
        if name == "web_secret":
            result[name] = value and "***"
        elif isinstance(value, SecretStr):
            result[name] = mask_url(value.get_secret_value())
        elif isinstance(value, dict):
            result[name] = {key: mask_url(url.get_secret_value()) for key, url in value.items()}
        elif isinstance(value, tuple):
            result[name] = list(value)
        else:
            result[name] = str(value) if isinstance(value, Path) else value
    return result


def mask_url(url: str) -> str:
    """A connection string without its password: a URL, or libpq's keywords with their spaces, quotes and
    backslashes.
    """
    import re

    if re.match(r"\s*[\w+.-]+://", url):
        url = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", url)
        return re.sub(r"(password=)[^&\s]*", r"\1***", url, flags=re.IGNORECASE)
    return re.sub(
        r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)",
        r"\1***",
        url,
        flags=re.IGNORECASE | re.DOTALL,
    )
