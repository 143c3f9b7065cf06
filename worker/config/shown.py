"""Settings for people: what a secret says is nobody's business."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from packhorse.worker.config.settings import Settings


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
    if re.match(r"\s*[\w+.-]+://", url):
        url = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", url)
        return re.sub(r"(password=)[^&\s]*", r"\1***", url, flags=re.IGNORECASE)
    return re.sub(
        r"(password\s*=\s*)('(?:[^'\\]|\\.)*'?|(?:[^\s\\]|\\.)*)",
        r"\1***",
        url,
        flags=re.IGNORECASE | re.DOTALL,
    )
