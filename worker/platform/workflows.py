"""Workflows of several steps: rows of workflow_states. A person has one active workflow of a type."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from packhorse.worker.platform.running import Script, run, run_async, to_object


def start_workflow(
    workflow_type: str,
    step: str,
    data: Mapping[str, Any] | None = None,
    *,
    user_phone: str | None = None,
    timeout: float | timedelta | None = None,
    agent_type: str | None = None,
    conversation_key: str | None = None,
    correlation_id: str | None = None,
    connection: Any = None,
) -> UUID:
    """Start a workflow at its first step; its id.

    workflow_type, step: 1 to 100 characters. data: a JSON object. user_phone: whose it is; None: nobody's.
    timeout: until the next step, in seconds (1 second to 366 days); None: by type, order 15 minutes, most
    others 30. agent_type, conversation_key, correlation_id:
    kept with it. connection: as for get_or_create_session(). Raises InvalidArgument; StoreRejected with
    sqlstate PH005 when the person has an active one of this type; StoreError.
    """
    return run(
        _start(workflow_type, step, data, user_phone, timeout, agent_type, conversation_key, correlation_id),
        connection,
    )


async def start_workflow_async(
    workflow_type: str,
    step: str,
    data: Mapping[str, Any] | None = None,
    *,
    user_phone: str | None = None,
    timeout: float | timedelta | None = None,
    agent_type: str | None = None,
    conversation_key: str | None = None,
    correlation_id: str | None = None,
    connection: Any = None,
) -> UUID:
    """As start_workflow(), awaited."""
    return await run_async(
        _start(workflow_type, step, data, user_phone, timeout, agent_type, conversation_key, correlation_id),
        connection,
    )


def _start(
    workflow_type: str,
    step: str,
    data: Mapping[str, Any] | None,
    user_phone: str | None,
    timeout: float | timedelta | None,
    agent_type: str | None,
    conversation_key: str | None,
    correlation_id: str | None,
) -> Script[UUID]:
    given = {
        "workflow_type": workflow_type,
        "step": step,
        "data": to_object("data", data or {}),
        "user_phone": user_phone,
        "timeout_seconds": _seconds(timeout),
        "agent_type": agent_type,
        "conversation_key": conversation_key,
        "correlation_id": correlation_id,
    }
    rows = yield "platform_start_workflow", given
    started: UUID = rows[0]["id"]
    return started


def advance_workflow(
    workflow_id: UUID | str,
    step: str,
    data: Mapping[str, Any] | None = None,
    *,
    timeout: float | timedelta | None = None,
    connection: Any = None,
) -> int:
    """Go on to the next step; its number, from 1.

    workflow_id: of start_workflow(). step, data, timeout: as there; the keys of data are put into the
    workflow's, and the time limit starts anew. connection: as for get_or_create_session(). Raises
    InvalidArgument; StoreRejected with sqlstate PH004 (no such workflow) or PH005 (it is not active);
    StoreError.
    """
    return run(_advance(workflow_id, step, data, timeout), connection)


async def advance_workflow_async(
    workflow_id: UUID | str,
    step: str,
    data: Mapping[str, Any] | None = None,
    *,
    timeout: float | timedelta | None = None,
    connection: Any = None,
) -> int:
    """As advance_workflow(), awaited."""
    return await run_async(_advance(workflow_id, step, data, timeout), connection)


def _advance(
    workflow_id: UUID | str, step: str, data: Mapping[str, Any] | None, timeout: float | timedelta | None
) -> Script[int]:
    given = {
        "workflow_id": workflow_id,
        "step": step,
        "data": to_object("data", data or {}),
        "timeout_seconds": _seconds(timeout),
    }
    rows = yield "platform_advance_workflow", given
    return int(rows[0]["number"])


def finish_workflow(
    workflow_id: UUID | str, status: str = "completed", error: str | None = None, *, connection: Any = None
) -> bool:
    """End a workflow; True when it ended now, False when it had ended so before.

    workflow_id: of start_workflow(). status: completed, failed or cancelled. error: what went wrong.
    connection: as for get_or_create_session(). Raises InvalidArgument; StoreRejected with sqlstate PH004 (no
    such workflow) or PH005 (it ended in another way); StoreError.
    """
    return run(_finish(workflow_id, status, error), connection)


async def finish_workflow_async(
    workflow_id: UUID | str, status: str = "completed", error: str | None = None, *, connection: Any = None
) -> bool:
    """As finish_workflow(), awaited."""
    return await run_async(_finish(workflow_id, status, error), connection)


def _finish(workflow_id: UUID | str, status: str, error: str | None) -> Script[bool]:
    rows = yield "platform_finish_workflow", {"workflow_id": workflow_id, "status": status, "error": error}
    return bool(rows[0]["done"])


def _seconds(timeout: float | timedelta | None) -> float | None:
    return timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
