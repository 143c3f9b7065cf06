"""Settings: one frozen, validated object from environment and packhorse.toml (SPEC W11)."""

from packhorse.worker.config.document import has_policies, read_document
from packhorse.worker.config.loading import SECRETS, load_settings, own_schema
from packhorse.worker.config.settings import NAME_PATTERN, TRACING_NEEDS, Settings
from packhorse.worker.config.shown import mask_url, shown

__all__ = [
    "NAME_PATTERN",
    "SECRETS",
    "TRACING_NEEDS",
    "Settings",
    "has_policies",
    "load_settings",
    "mask_url",
    "own_schema",
    "read_document",
    "shown",
]
