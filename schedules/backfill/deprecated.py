"""C4: deprecated tables (PLATFORM 7). The assistant's tables of its old name are copied, then dropped; others
are proposed for a drop, by name.

Messages follow their conversations, and are dropped before them. What is proposed copies nothing: a table
that has rows needs a second confirmation.
"""

from __future__ import annotations

from typing import ClassVar

from packhorse.schedules.backfill.base import Backfill, BatchResult, CheckFinding
from packhorse.schedules.backfill.walking import each_batch
from packhorse.worker.db import composed
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import sql
from packhorse.worker.ops.backfills import confirm_rows
from packhorse.worker.store import backfill_tables as tables
from packhorse.worker.store import backfills as store
from packhorse.worker.store.backfill_tables import Batch, SourceTable


class EttaTable(Backfill):
    """A table of the assistant's old name. follows: what must be copied before it."""

    target: ClassVar[str]
    columns: ClassVar[dict[str, tuple[str, ...]]]
    follows: ClassVar[str | None] = None
    time_columns = ("created_at", "updated_at", "last_message_at")

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Columns, rights, order."""
        found = list(self.missing_columns(source, self.columns))
        target = tables.table(connection, self.target, ours=True)
        assert target is not None, "the ledger is there, so the platform is"
        found += self.not_ours(target)
        if self.follows is not None:
            before = store.progress(connection, self.follows)
            if not before or before[0]["state"] not in ("copied", "verified", "finished"):
                text = f"{self.follows} is not copied yet, and comes first"
                found.append(CheckFinding("refused", "order", text, f"packhorse backfill run {self.follows}"))
        return found or [
            CheckFinding("ok", "volume", f"{source.label} has about {source.estimated_rows:.0f} rows")
        ]

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        """One statement; ids are kept."""
        given = {"backfill": self.name, "label": batch.source.label, **batch.parameters}
        parts = {"source": batch.source.identifier, "in_batch": batch.where(), **self._parts(connection)}
        copied, told = tables.run(connection, f"{self.name}_copy", given, **parts).fetchone()
        return BatchResult(copied, told)

    def _parts(self, connection: DeadlineConnection) -> dict[str, composed.Composable]:
        return {}

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """100 % accounted for."""
        given = {"backfill": self.name, "label": source.label}
        target = composed.Identifier(connection.names.platform, self.target)
        rows, migrated, explained, missing, examples = tables.run(
            connection, "etta_accounts", given, source=source.identifier, target=target
        ).fetchone()
        if missing:
            text = f"{missing} of {rows} rows are neither copied nor explained: {', '.join(examples)}"
            return [
                CheckFinding("refused", "accounted", text, f"packhorse backfill run {self.name} copies them.")
            ]
        return [
            CheckFinding("ok", "accounted", f"source {rows} = migrated {migrated} + explained {explained}")
        ]

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        """Copies go while their rows exist and nobody has gone on with them."""
        self.refuse_without_source(source, finished)
        assert source is not None, "refused"
        target = composed.Identifier(connection.names.platform, self.target)
        parts: dict[str, composed.Composable] = {
            "source": source.identifier,
            "target": target,
            "time": composed.Literal("created_at"),
        }
        in_use = composed.SQL(connection.names.of(sql("etta_in_use")) if self.follows is None else "false")

        def take_back(batch: Batch) -> None:
            tables.run(
                connection, "etta_take_back", batch.parameters, in_batch=batch.where(), in_use=in_use, **parts
            )

        each_batch(connection, source, take_back)
        left = tables.run(
            connection,
            "etta_accounts",
            {"backfill": self.name, "label": source.label},
            source=source.identifier,
            target=target,
        ).fetchone()[1]
        store.forget_ledger(connection, self.name)
        return (
            [CheckFinding("warning", "in use", f"{left} rows stay in {self.target}: they are in use")]
            if left
            else []
        )


class EttaConversations(EttaTable):
    name = "etta_conversations"
    title = "etta_conversations becomes amara_conversations"
    defaults = {"source": "etta_conversations"}
    target = "amara_conversations"
    columns = {"id": ("uuid",), "user_id": ("uuid",), "created_at": ("timestamp with time zone",)}

    def _parts(self, connection: DeadlineConnection) -> dict[str, composed.Composable]:
        key = connection.execute(sql("etta_user_key")).fetchone()
        if key is None:
            return {"user_exists": composed.SQL("true")}
        users = {"users": composed.Identifier(key[0], key[1]), "user": composed.Identifier(key[2])}
        return {"user_exists": composed.SQL(connection.names.of(sql("etta_user_exists"))).format(**users)}

    def last_look(
        self, connection: DeadlineConnection, source: SourceTable, rows: int | None
    ) -> list[CheckFinding]:
        """Messages are dropped before conversations."""
        found = self.verify(connection, source)
        if tables.exists(connection, source.schema, "etta_messages"):
            text = f"{source.schema}.etta_messages is still there, and goes first"
            found.append(CheckFinding("refused", "order", text, "packhorse backfill finish etta_messages"))
        return found


class EttaMessages(EttaTable):
    name = "etta_messages"
    title = "etta_messages becomes amara_messages, after its conversations"
    defaults = {"source": "etta_messages"}
    target = "amara_messages"
    follows = "etta_conversations"
    columns = {
        "id": ("uuid",),
        "conversation_id": ("uuid",),
        "role": (),
        "content": (),
        "created_at": ("timestamp with time zone",),
    }


class ProposedDrop(Backfill):
    """A table that nothing uses any more: nothing is copied, and it goes only by name. why: what replaces
    it.
    """

    why: ClassVar[str]
    copies = False
    time_columns = ("created_at", "updated_at")

    def check(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Why it is proposed, and what it holds."""
        rows = tables.count(connection, source)
        found = [CheckFinding("ok", "proposal", f"{source.label} is proposed for a drop: {self.why}")]
        if rows:
            found.append(
                CheckFinding(
                    "warning",
                    "rows",
                    f"{source.label} has {rows} rows, which are lost with it",
                    f"finish asks for --rows {rows}",
                )
            )
        found += [
            CheckFinding(
                "warning",
                "dependents",
                f"{name} still names {source.label}",
                "The drop is refused as long as it does.",
            )
            for name in tables.dependents(connection, source, [])
        ]
        return found

    def copy(self, connection: DeadlineConnection, batch: Batch) -> BatchResult:
        raise NotImplementedError("the engine refuses it")

    def verify(self, connection: DeadlineConnection, source: SourceTable) -> list[CheckFinding]:
        """Nothing is to be compared."""
        return [CheckFinding("ok", "proposal", f"{source.label}: nothing is copied; {self.why}")]

    def last_look(
        self, connection: DeadlineConnection, source: SourceTable, rows: int | None
    ) -> list[CheckFinding]:
        """The second confirmation, counted while nobody can write."""
        confirm_rows(self.name, tables.count(connection, source), rows)
        return []

    def rollback(
        self, connection: DeadlineConnection, source: SourceTable | None, finished: bool
    ) -> list[CheckFinding]:
        self.refuse_without_source(source, finished)
        return []


class Reviews(ProposedDrop):
    name = "reviews"
    title = "proposed drop of reviews"
    defaults = {"source": "reviews"}
    why = "customer_reviews and professional_reviews replace it"


class BookingAuthorizations(ProposedDrop):
    name = "booking_authorizations"
    title = "proposed drop of booking_authorizations"
    defaults = {"source": "booking_authorizations"}
    why = "it was never built"


class ReferralCredits(ProposedDrop):
    name = "referral_credits"
    title = "proposed drop of referral_credits"
    defaults = {"source": "referral_credits"}
    why = "credits come from referrals"


class PricingFaqs(ProposedDrop):
    name = "pricing_faqs"
    title = "proposed drop of pricing_faqs"
    defaults = {"source": "pricing_faqs"}
    why = "help articles replace it"
