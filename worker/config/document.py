"""packhorse.toml becomes tables. What the settings in it mean: loading.py; what its sections mean:
schedules/config.py, worker/calls/declarations.py and worker/calls/push.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packhorse.worker.errors import ConfigError

#: Where the file is, when it is not in the current folder.
WHERE = "PACKHORSE_CONFIG"
#: Its tables that are no settings.
SECTIONS = ("schedules", "retention", "partitions", "gates", "services", "push")


def read_document(
    toml_path: Path | None = None, environ: Mapping[str, str] | None = None
) -> tuple[dict[str, Any], Path]:
    """What the file says, nothing when there is none, and its path: toml_path, else PACKHORSE_CONFIG, else
    ./packhorse.toml. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    path = toml_path or Path(environ.get(WHERE) or "packhorse.toml")
    if not path.is_file():
        return {}, path
    try:
        return tomllib.loads(path.read_text()), path
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise ConfigError([f"{path}: not readable as TOML: {error}"]) from None


def has_policies() -> bool:
    """Has the file a section about retention or partitions? True when it cannot be read."""
    try:
        document, _ = read_document()
    except ConfigError:
        return True
    return bool({"retention", "partitions"} & document.keys())
