"""C2: old logs become webhook_events and audit_events, one backfill per table (PLATFORM 7).

Each event carries the table and the key of its row (metadata.migrated_from, migrated_id) and a hash of it. So
a second run adds what is new, nothing twice, and sees what has changed. A changed row of a webhook log is
copied again; an audit event is never rewritten: there the ledger has the row.
"""

from __future__ import annotations

from typing import ClassVar

from packhorse.schedules.backfill.base import Backfill, BatchResult, CheckFinding, quickly
from packhorse.schedules.backfill.walking import each_batch, security_invoker
from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store.backfill_tables import Batch, SourceTable, quoted

#: Tables of the inventory, and what becomes of each (S000).
VERDICTS = {
    "webhook_logs": "merged into webhook_events",
    "webhook_delivery_log": "merged into webhook_events",
    "webhook_routing_logs": "stays: another granularity",
    "webhook_stats": "stays: aggregates",
    "processed_webhooks": "stays: idempotency",
    "webhook_nonces": "stays",
    "audit_logs": "merged into audit_events",
    "system_logs": "merged into audit_events",
    "security_audit_log": "merged into audit_events",
    "agent_error_logs": "merged into audit_events when asked for",
    "trip_status_audit": "merged into audit_events when asked for",
}
#: What a text must be to become a UUID.
UUID_FORM = "^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$"
TIMES = ("created_at", "timestamp", "occurred_at")


class LogTable(Backfill):
    """One old log table. target: the table of events; days: how long its nightly retention keeps rows; view:
    for readers of the old one.
    """

    target: ClassVar[str]
    category: ClassVar[str]
    statement: ClassVar[str]
    event_type: ClassVar[str | None] = None
    columns: ClassVar[dict[str, tuple[str, ...]]] = {}
    view: ClassVar[str | None] = None
    days: ClassVar[int]
    time_columns = ("created_at", "updated_at", "delivered_at", "timestamp", "occurred_at")

    def own_relations(self, connection: DeadlineConnection) -> list[str]:
        return [] if self.view is None else [quoted(connection.names.platform, self.view)]

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Columns, rights, the inventory, what the nightly retention would take at once."""
        found = list(self.missing_columns(source, self.columns))
        target = tables.table(connection, self.target, ours=True)
        assert target is not None, "the ledger is there, so the platform is"
        found += self.not_ours(target)
        if found:
            return found
        given = {"names": list(VERDICTS), "schema": quoted(source.schema)}
        for name, live, dead, inserted, updated, deleted, size in connection.execute(
            sql("logs_inventory"), given
        ).fetchall():
            text = f"{name}: {live} rows, {dead} dead, {inserted} inserted, {updated} updated, {deleted} deleted, {size} bytes: {VERDICTS[name]}"
            found.append(CheckFinding("ok", "inventory", text))
        time = next((column for column in TIMES if column in source.types), None)
        if time is not None:
            found += self._of_retention(connection, source, time)
        return found

    def _of_retention(
        self, connection: DeadlineConnection, source: SourceTable, time: str
    ) -> list[CheckFinding]:
        parts: dict[str, composed.Composable] = {"source": source.identifier, "time": composed.Literal(time)}
        old = tables.run(connection, "logs_older_than", {"days": self.days}, **parts).fetchone()[0]
        if not old or self.category == "security":
            return []
        text = (
            f"{old} rows are older than {self.days} days: their copies stay until the clean-up, and the nightly "
            f"retention of {self.target} takes them after it"
        )
        hint = f"To keep them, in packhorse.toml: [retention.{self.target}] keep = …"
        return [CheckFinding("ok", "retention", text, hint)]

    def prepare(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The view for readers."""
        if self.view is None:
            return
        invoker = security_invoker(connection)
        options = composed.SQL("with (security_invoker = true)" if invoker else "")
        view = composed.Identifier(connection.names.platform, self.view)
        tables.run(connection, f"logs_{self.name}_view", options=options)
        tables.run(connection, "logs_view_comment", view=view)
        tables.grant_view(connection, connection.names.platform, self.view, to_authenticated=invoker)

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """One statement."""
        given = {
            "backfill": self.name,
            "label": batch.source.label,
            "from": batch.source.name,
            "category": self.category,
            "event_type": self.event_type,
        }
        copied, told = tables.run(
            connection, self.statement, {**given, **batch.parameters}, **self._parts(connection, batch)
        ).fetchone()
        return BatchResult(copied, told)

    def _parts(self, connection: DeadlineConnection, batch: Batch) -> dict[str, composed.Composable]:
        return {
            "source": batch.source.identifier,
            "key_text": batch.source.key_text(),
            "in_batch": batch.where(),
        }

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """100 % accounted for: source = migrated + explained."""
        parts: dict[str, composed.Composable] = {
            "source": source.identifier,
            "target": composed.Identifier(connection.names.platform, self.target),
            "key_text": source.key_text(),
        }
        given = {"backfill": self.name, "label": source.label, "from": source.name}
        accounts = tables.run(connection, "logs_accounts", given, **parts).fetchone()
        found = self.accounted(source, *accounts)
        orphans = tables.run(connection, "logs_orphans", given, **parts).fetchone()[0]
        if orphans:
            found.append(
                CheckFinding(
                    "ok",
                    "deleted",
                    f"{orphans} events are of rows that were deleted from {source.label} since; they stay",
                )
            )
        return found

    def finish(self, connection: DeadlineConnection, source: SourceTable) -> None:
        """The view and the old table."""
        self._drop_view(connection)
        super().finish(connection, source)

    def _drop_view(self, connection: DeadlineConnection) -> None:
        if self.view is not None:
            tables.run(
                connection, "logs_drop_view", view=composed.Identifier(connection.names.platform, self.view)
            )

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """Copies go while their rows exist."""
        self.refuse_without_source(source, finished)
        assert source is not None, "refused"
        statement = "logs_take_back_webhooks" if self.target == "webhook_events" else "logs_take_back_audit"

        def take_back(batch: Batch) -> None:
            tables.run(
                connection,
                statement,
                {"from": source.name, **batch.parameters},
                **self._parts(connection, batch),
            )

        each_batch(connection, source, take_back)
        quickly(connection, lambda: self._drop_view(connection))
        store.forget_ledger(connection, self.name)
        target = composed.Identifier(connection.names.platform, self.target)
        left = tables.run(connection, "logs_left", {"from": source.name}, target=target).fetchone()[0]
        return (
            [
                CheckFinding(
                    "warning", "deleted", f"{left} events stay: their rows are gone from {source.label}"
                )
            ]
            if left
            else []
        )


class WebhookLogs(LogTable):
    """Webhooks that came in."""

    name = "webhook_logs"
    title = "webhook_logs becomes webhook_events, category incoming"
    defaults = {"source": "webhook_logs"}
    target, category, statement, view, days = (
        "webhook_events",
        "incoming",
        "logs_webhook_logs",
        "webhook_logs_compat",
        30,
    )
    columns = dict.fromkeys(("event_type", "webhook_id", "source", "payload", "status", "created_at"), ())


class WebhookDeliveryLog(LogTable):
    """Attempts to deliver webhooks."""

    name = "webhook_delivery_log"
    title = "webhook_delivery_log becomes webhook_events, category delivery"
    defaults = {"source": "webhook_delivery_log"}
    target, category, statement, view, days = (
        "webhook_events",
        "delivery",
        "logs_webhook_delivery_log",
        "webhook_delivery_log_compat",
        30,
    )
    columns = dict.fromkeys(
        ("webhook_id", "recipient", "status", "retry_count", "error_message", "created_at", "delivered_at"),
        (),
    )


class AuditLog(LogTable):
    """A log of who did what, whose columns are found by name."""

    target, statement, days = "audit_events", "logs_audit", 365

    def _parts(self, connection: DeadlineConnection, batch: Batch) -> dict[str, composed.Composable]:
        uuid = composed.Literal(UUID_FORM)
        key = connection.execute(sql("logs_user_key")).fetchone()
        if key is None:
            known = composed.SQL(connection.names.of(sql("logs_any_user"))).format(uuid=uuid)
        else:
            users = {"users": composed.Identifier(key[0], key[1]), "user": composed.Identifier(key[2])}
            known = composed.SQL(connection.names.of(sql("logs_known_user"))).format(uuid=uuid, **users)
        return {**super()._parts(connection, batch), "uuid": uuid, "known_user": known}


class AuditLogs(AuditLog):
    name = "audit_logs"
    title = "audit_logs becomes audit_events, category user_action"
    defaults = {"source": "audit_logs"}
    category, view = "user_action", "audit_logs_compat"


class SystemLogs(AuditLog):
    name = "system_logs"
    title = "system_logs becomes audit_events, category system"
    defaults = {"source": "system_logs"}
    category = "system"


class SecurityAuditLog(AuditLog):
    name = "security_audit_log"
    title = "security_audit_log becomes audit_events, category security"
    defaults = {"source": "security_audit_log"}
    category = "security"


class AgentErrorLogs(AuditLog):
    name = "agent_error_logs"
    title = "agent_error_logs becomes audit_events, category system, where you want that"
    event_type = "agent_error"
    defaults = {"source": "agent_error_logs"}
    category = "system"


class TripStatusAudit(AuditLog):
    name = "trip_status_audit"
    title = "trip_status_audit becomes audit_events, category user_action, where you want that"
    event_type = "trip_status_change"
    defaults = {"source": "trip_status_audit"}
    category = "user_action"
