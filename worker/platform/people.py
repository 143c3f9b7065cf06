"""What is kept about a person: exported, erased, masked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from packhorse.worker.observe.masking import masked
from packhorse.worker.platform.running import Script, run, run_async

#: Export and erasure read whole tables; the deadline of other calls would cut them off.
DEADLINE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was done in one table. action: deleted, emptied or reported (not touched). rows: how many."""

    table_name: str
    action: str
    rows: int


def export_person_data(
    user_id: UUID | str | None = None, phone: str | None = None, *, connection: Any = None
) -> dict[str, Any]:
    """What is kept about a person, one key per table with its rows. Writes an audit record.

    user_id, phone: one of them, or both; a phone in any form. connection: as for get_or_create_session().
    Raises InvalidArgument, StoreError.
    """
    return run(_export(user_id, phone), connection, deadline_seconds=DEADLINE_SECONDS)


async def export_person_data_async(
    user_id: UUID | str | None = None, phone: str | None = None, *, connection: Any = None
) -> dict[str, Any]:
    """As export_person_data(), awaited."""
    return await run_async(_export(user_id, phone), connection, deadline_seconds=DEADLINE_SECONDS)


def _export(user_id: UUID | str | None, phone: str | None) -> Script[dict[str, Any]]:
    rows = yield "platform_export_person", {"user_id": user_id, "phone": phone}
    data: dict[str, Any] = json.loads(rows[0]["data"])
    return data


def erase_person_data(
    user_id: UUID | str | None = None,
    phone: str | None = None,
    reason: str | None = None,
    *,
    connection: Any = None,
) -> list[Erasure]:
    """Erase a person from all tables, in one transaction, with an audit record; what was done per table. Safe
    to repeat.

    user_id, phone: as for export_person_data(). reason: why, for the audit record. connection: as for
    get_or_create_session(). Raises InvalidArgument, StoreError.
    """
    return run(_erase(user_id, phone, reason), connection, deadline_seconds=DEADLINE_SECONDS)


async def erase_person_data_async(
    user_id: UUID | str | None = None,
    phone: str | None = None,
    reason: str | None = None,
    *,
    connection: Any = None,
) -> list[Erasure]:
    """As erase_person_data(), awaited."""
    return await run_async(_erase(user_id, phone, reason), connection, deadline_seconds=DEADLINE_SECONDS)


def _erase(user_id: UUID | str | None, phone: str | None, reason: str | None) -> Script[list[Erasure]]:
    rows = yield "platform_erase_person", {"user_id": user_id, "phone": phone, "reason": reason}
    return [Erasure(**row) for row in rows]


def mask_personal_data(value: Any) -> Any:
    """The value without phone numbers, e-mail addresses and secrets: `+250788123456` becomes `+250788***456`.

    value: a text, or dicts and lists of them, bounded in depth and size; what else is a text of itself.
    """
    return masked(value)
