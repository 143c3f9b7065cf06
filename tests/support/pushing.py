"""packhorse.toml with pushes, and secrets, for tests."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

SECRET = "whsec_" + base64.b64encode(b"a" * 32).decode()
OTHER_SECRET = "whsec_" + base64.b64encode(b"b" * 32).decode()


def secret_file(folder: Path, *secrets: str) -> Path:
    path = folder / "secret"
    path.write_text("\n".join(secrets or (SECRET,)) + "\n")
    return path


def push_toml(folder: Path, **tables: dict[str, Any]) -> Path:
    """The file, with a table for each type or pattern; with a secret and allow_private, unless it says
    otherwise.
    """
    secret = folder / "secret" if (folder / "secret").exists() else secret_file(folder)
    lines = []
    for types, said in tables.items():
        lines.append(f"[push.{json.dumps(types)}]")
        fields = {"secret_file": str(secret), "allow_private": True} | said
        lines += [f"{name} = {_toml(value)}" for name, value in fields.items() if value is not None]
    path = folder / "packhorse.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{name} = {_toml(inner)}" for name, inner in value.items()) + " }"
    return json.dumps(value)
