"""Settings that are lists of names."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator


def _split(value: Any) -> Any:
    """A list of names as TOML has it, or as one text with commas; what is neither, as it is."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        return value
    return tuple(part.strip() for part in parts if part.strip())


NameList = Annotated[tuple[str, ...], BeforeValidator(_split)]
