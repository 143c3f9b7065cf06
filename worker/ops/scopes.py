"""What an operator does with scopes: park one that somebody names, lift it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.store import scopes
from packhorse.worker.suggest import did_you_mean


def require_scope(connection: DeadlineConnection, scope: str) -> None:
    """Raise InvalidArgument, naming a near miss, unless an actor, a queue or an earlier park has this name:
    nothing would rest.
    """
    known = scopes.known_scopes(connection)
    if scope not in known:
        hint = did_you_mean(scope, known, f"Known: {', '.join(known[:10])}.")
        raise InvalidArgument(
            f"scope: no actor names {scope[:200]!r}",
            field="scope",
            hint=f"{hint} --type says what belongs to it",
        )


def park(
    connection: DeadlineConnection,
    scope: str,
    seconds: float,
    *,
    reason: str | None,
    types: Sequence[str],
    probing: bool,
    operator: str,
) -> datetime:
    """Park a scope for so long, whatever it was before; until when. types belong to it beside those that say
    so; with none the name must be known.
    """
    if not types:
        require_scope(connection, scope)
    return scopes.park(connection, scope, seconds, reason, types or None, probing, operator)
