"""From environment, packhorse.toml and keywords to one Settings object.

Nobody else reads our variables. `load_settings` raises ConfigError with every problem at once; secrets never
appear in a message. Order: keyword > environment > TOML file > default.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from packhorse.worker.config.document import SECTIONS, WHERE, read_document
from packhorse.worker.config.settings import Settings
from packhorse.worker.errors import ConfigError
from packhorse.worker.suggest import or_near

PREFIX = "PACKHORSE_"
#: Variables with our prefix that are none: where the file is, and the database of an application's tests
#: (worker/testing/plugin.py).
NO_SETTINGS = frozenset({WHERE, "PACKHORSE_TEST_DATABASE_URL"})
MAX_SECRET_BYTES = 65536
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
    try:
        document, path = read_document(toml_path, environ)
    except ConfigError as error:
        problems += error.problems
    else:
        values.update((name, value) for name, value in document.items() if name not in SECTIONS)
        sources.update(dict.fromkeys(values, str(path)))
        # a mount whose source was missing leaves a folder; a link may lead nowhere
        if os.path.lexists(path) and not path.is_file():
            problems.append(f"{path}: is there, but is no file that can be read")
        elif not path.is_file() and (toml_path or environ.get(WHERE)):
            problems.append(f"{path}: no such configuration file")
    _read_environment(environ, values, sources, problems)
    values.update({key: value for key, value in overrides.items() if value is not None})
    for name in [name for name in values if name not in Settings.model_fields]:
        near = or_near(name, [*Settings.model_fields, *SECTIONS])
        problems.append(f"{sources.get(name, name)}: no setting {name!r}{near}")
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
