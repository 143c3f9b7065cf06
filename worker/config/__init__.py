"""Settings: one frozen, validated object from environment and packhorse.toml (SPEC W11)."""

from packhorse.worker.config.loading import PREFIX, SECRETS, SECTIONS, load_settings, own_schema
from packhorse.worker.config.settings import NAME_PATTERN, TRACING_NEEDS, Settings
from packhorse.worker.config.shown import mask_url, shown

__all__ = [
    "NAME_PATTERN",
    "PREFIX",
    "SECRETS",
    "SECTIONS",
    "TRACING_NEEDS",
    "Settings",
    "load_settings",
    "mask_url",
    "own_schema",
    "shown",
]
