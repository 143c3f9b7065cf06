"""packhorse.toml as text becomes tables: the sections that are not settings. What they mean: config.py, and
worker/calls/declarations.py.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packhorse.worker.config import PREFIX, SECTIONS
from packhorse.worker.errors import ConfigError


def has_policies(environ: Mapping[str, str] | None = None) -> bool:
    """Has packhorse.toml a section about retention or partitions? True when it cannot be read."""
    try:
        document, _ = read_document(os.environ if environ is None else environ, None)
    except ConfigError:
        return True
    return bool({"retention", "partitions"} & document.keys())


def read_document(environ: Mapping[str, str], toml_path: Path | None) -> tuple[dict[str, Any], Path]:
    """The sections, none when there is no file, and its path: toml_path, else PACKHORSE_CONFIG, else
    ./packhorse.toml. Raises ConfigError.
    """
    path = toml_path or Path(environ.get(f"{PREFIX}CONFIG") or "packhorse.toml")
    if not path.is_file():
        return {}, path
    try:
        document = tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: not readable as TOML: {error}"]) from None
    return {name: document[name] for name in SECTIONS if name in document}, path
