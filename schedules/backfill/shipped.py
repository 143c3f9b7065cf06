"""The backfills that Packhorse ships, in the order in which a platform is moved (SPEC C1-C4)."""

from __future__ import annotations

from packhorse.schedules.backfill.base import Backfill

SHIPPED: dict[str, type[Backfill]] = {}
