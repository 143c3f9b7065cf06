"""Findings about the server, the role and what this configuration will ask of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from functools import partial

from packhorse.worker.broker.postgres import DEFAULT_POOL_SIZE
from packhorse.worker.clock import skew
from packhorse.worker.config import Settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.errors import translated
from packhorse.worker.db.schema_version import MINIMUM_SERVER
from packhorse.worker.doctor.findings import Finding
from packhorse.worker.errors import StoreError
from packhorse.worker.ops.copies import what_waits
from packhorse.worker.ops.retries import span_sentence
from packhorse.worker.records import Row
from packhorse.worker.store import copies, workers
from packhorse.worker.store import doctor as store

#: Leases and schedules go by the database's clock; a host that is off by more than this confuses whoever
#: reads its log.
SKEW_WARN_SECONDS = 2.0
SKEW_FAIL_SECONDS = 300.0
#: How far ahead there must be partitions: as `packhorse partitions check` and `packhorse health` have it.
RUNWAY_WARN_DAYS = {"month": 7.0}
RUNWAY_WARN_DAYS_OTHERS = 2.0
RUNWAY_FAIL_DAYS = 1.0
#: Claim loop, heartbeat and LISTEN of a worker process.
OWN_CONNECTIONS = 3
#: Shortest statement_timeout, in ms, that no statement of a worker runs into.
LEAST_STATEMENT_TIMEOUT_MS = 10_000


def examine_server(connection: DeadlineConnection, settings: Settings) -> Iterator[Finding]:
    """Version, clock, role, settings and connection budget."""
    before = time.time()
    facts = store.server(connection)
    yield _version(facts)
    yield _clock(float(facts["clock"]), before, time.time())
    yield _statistics(facts)
    yield from _role(facts, store.roles(connection))
    yield from _settings(store.settings(connection), str(facts["role"]))
    yield _budget(facts, settings)


def examine_rls(connection: DeadlineConnection) -> Finding:
    """Enqueue a probe as this role, look for it, roll back: does row-level security show what was written?"""
    try:
        with translated():
            seen = workers.self_test(connection)
    except StoreError as error:
        return Finding(
            "row_level_security",
            "fail",
            f"this role cannot enqueue: {error}",
            "log in as a role that is in packhorse_worker",
        )
    if seen:
        return Finding("row_level_security", "ok", "this role sees what it enqueues")
    return Finding(
        "row_level_security",
        "fail",
        "row-level security hides from this role what it enqueues: workers would find nothing",
        "restore the policies that `schema` names, or grant packhorse_worker to this role",
    )


def examine_rights(connection: DeadlineConnection, sets: Iterable[str]) -> Iterator[Finding]:
    """Has anybody other rights on our objects than SECURITY.md lists (default privileges of the host, say),
    or may others create among them?
    """
    try:
        with translated():
            statements = store.rights_to_mend(connection, sets)
    except StoreError as error:
        yield Finding("rights", "fail", f"they cannot be compared: {error}", "mend what `schema` names first")
        return
    for statement in statements:
        what = (
            "somebody has a right that nobody should have"
            if statement.startswith("revoke")
            else "a role of ours lacks a right"
        )
        yield Finding("rights", "fail", f"{what}: packhorse migrate up mends it", f"{statement};")
    if not statements:
        yield Finding("rights", "ok", "every role has the rights that SECURITY.md lists, and no other")


def examine_sequences(connection: DeadlineConnection) -> Iterator[Finding]:
    """Do ids and lease tokens go on behind those that are taken? Logical replication copies rows and no
    sequences.
    """
    try:
        with translated():
            found = store.sequences(connection)
    except StoreError as error:
        yield Finding(
            "sequences",
            "fail",
            f"they cannot be compared with their tables: {error}",
            "mend what `schema` names first",
        )
        return
    hidden = [row for row in found if not row["visible"]]
    behind = [row for row in found if row["visible"] and row["highest"] > row["stands"]]
    for row in hidden:
        if row["of_worker"]:
            text = f"this role may not see where {row['name']} stands: it was not compared with its table"
            yield Finding("sequences", "warn", text, "ask as a role that is in packhorse_worker")
    for row in behind:
        effect = (
            "enqueues and burials fail, tokens fence nobody"
            if row["of_worker"]
            else f"inserts into {row['table_name']} fail"
        )
        text = f"{row['name']} would give out numbers up to {row['highest']} again: {effect}"
        yield Finding(
            "sequences", "fail", text, store.repair("sequence", name=row["name"], highest=row["highest"])
        )
    if not behind and not any(row["of_worker"] for row in hidden):
        others = f"; {len(hidden)} others are for the owner of their tables to compare" if hidden else ""
        yield Finding("sequences", "ok", f"ids and lease tokens go on behind those that are taken{others}")


def examine_partitions(connection: DeadlineConnection) -> Iterator[Finding]:
    """Will inserts find a partition? A logical replica has those that were there when its schema was
    copied.
    """
    try:
        with translated():
            found = store.runways(connection)
    except StoreError:
        return  # `schema` and `rights` have said why
    short = [
        row for row in found if row["days"] < RUNWAY_WARN_DAYS.get(row["every"], RUNWAY_WARN_DAYS_OTHERS)
    ]
    for row in short:
        text = f"{row['table_name']} has partitions for {row['days']:.1f} days: then inserts into it fail"
        mend = "packhorse partitions make POLICY, as packhorse partitions status names it"
        yield Finding("partitions", "fail" if row["days"] < RUNWAY_FAIL_DAYS else "warn", text, mend)
    if not short:
        yield Finding("partitions", "ok", "inserts find a partition for days to come")


def examine_retention(connection: DeadlineConnection) -> Iterator[Finding]:
    """Workers delete only what has an end of its own; what ages by policy grows for ever where no scheduler
    runs.
    """
    try:
        with translated():
            found = store.retention(connection)
    except StoreError:
        return  # `schema` and `row_security` have said why
    old = [
        name
        for name, is_old in (("webhook ids", found["webhook_ids"]), ("dead letters", found["dead_letters"]))
        if is_old
    ]
    if old and not found["scheduler"]:
        yield Finding(
            "retention",
            "warn",
            f"no scheduler runs, and {' and '.join(old)} are older than the shipped policies keep them: the tables grow for ever",
            "start `packhorse scheduler` beside the workers, or call cleanup_old_messages() from a cron of your own",
        )


def examine_copy(connection: DeadlineConnection) -> Finding:
    """Is this a restored copy that nobody has accepted?"""
    try:
        with translated():
            found = copies.status(connection)
    except StoreError as error:
        return Finding("copy", "fail", f"it cannot be told: {error}", "mend what `schema` names first")
    if not found["copy"]:
        return Finding("copy", "ok", "this database is no copy of another one")
    text = f"this database is a copy that nobody has accepted: {what_waits(found)} wait"
    return Finding("copy", "fail", text, "once the original starts nothing any more: packhorse copy accept")


def examine_retries(connection: DeadlineConnection) -> Iterator[Finding]:
    """How long an outage do the retries outlast? No fault: the defaults are short, and what helps is for
    people to choose.
    """
    try:
        with translated():
            spans = store.retry_spans(connection)
    except StoreError:
        return  # `schema` has said why
    if not spans:
        yield Finding("retries", "ok", "every queue has a failure breaker: an outage parks it")
        return
    more = (
        f" ({len(spans) - 1} more queues without a failure breaker last as long, or longer)"
        if len(spans) > 1
        else ""
    )
    yield Finding(
        "retries",
        "ok",
        f"queue {spans[0]['queue']}: {span_sentence(spans[0])}{more}",
        "name what actors call (services=), or set failure_breaker",
    )


def examine_relays(connection: DeadlineConnection) -> Iterator[Finding]:
    """Queues that are forwarded, and the relays that take their messages; nothing where there is neither."""
    try:
        with translated():
            found = store.relays(connection)
    except StoreError:
        return  # `schema` has said why
    if found["unserved"]:
        yield Finding(
            "relays",
            "warn",
            f"{', '.join(found['unserved'])}: forwarded, and no relay takes it: its messages wait in Postgres",
            "packhorse relay, or: packhorse queue set QUEUE forward=none",
        )
    elif found["relays"] and not found["forwarded"]:
        yield Finding(
            "relays",
            "ok",
            f"{found['relays']} relay process(es) live and no queue is forwarded: they have nothing to do",
            "packhorse queue set QUEUE forward=amqp",
        )
    elif found["forwarded"]:
        yield Finding(
            "relays", "ok", f"{found['forwarded']} forwarded queue(s), {found['relays']} relay process(es)"
        )


def _version(facts: Row) -> Finding:
    if facts["version"] < MINIMUM_SERVER:
        return Finding(
            "server_version",
            "fail",
            f"PostgreSQL {facts['version_text']} is too old",
            "upgrade to PostgreSQL 14 or newer",
        )
    if facts["in_recovery"]:
        return Finding(
            "server_version",
            "fail",
            "this server is a standby: nothing can be written",
            "connect to the primary",
        )
    return Finding("server_version", "ok", f"PostgreSQL {facts['version_text']}")


def _clock(theirs: float, before: float, after: float) -> Finding:
    apart = abs(skew(before, theirs, after))
    status = "fail" if apart > SKEW_FAIL_SECONDS else "warn" if apart > SKEW_WARN_SECONDS else "ok"
    if status == "ok":
        return Finding("clock", "ok", "this host's clock agrees with the database's")
    return Finding(
        "clock",
        "fail" if status == "fail" else "warn",
        f"this host's clock differs from the database's by {apart:.1f} s",
        "run a time service (chrony, systemd-timesyncd) on both",
    )


def _statistics(facts: Row) -> Finding:
    if facts["sees_all_statistics"]:
        return Finding("statistics", "ok", "this role sees the snapshots of others")
    return Finding(  # no fault: the right shows what others run, and is for its owner to give
        "statistics",
        "ok",
        "this role may not see how old the snapshots of other roles are: while there are any, packhorse_oldest_snapshot_age_seconds "
        "is absent and maintenance goes at half speed",
        store.repair("see_statistics", role=facts["role"]),
    )


def _role(facts: Row, roles: list[Row]) -> Iterator[Finding]:
    name = facts["role"]
    for row in roles:
        if not row["exists"]:
            yield Finding(
                "role",
                "fail",
                f"role {row['role']} does not exist",
                store.repair("create_role", role=row["role"]),
            )
    if facts["superuser"]:
        yield Finding(
            "role",
            "warn",
            f"{name} is a superuser: no privilege and no policy holds it",
            store.repair("create_login"),
        )
    elif facts["bypassrls"]:
        yield Finding(
            "role",
            "warn",
            f"{name} has BYPASSRLS: no policy holds it",
            store.repair("nobypassrls", role=name),
        )
    elif any(row["role"] == "packhorse_worker" and row["exists"] and not row["member"] for row in roles):
        yield Finding(
            "role", "fail", f"{name} is not in packhorse_worker", store.repair("join_worker", role=name)
        )
    elif all(row["exists"] for row in roles):
        yield Finding("role", "ok", f"{name} is in packhorse_worker, no superuser, no BYPASSRLS")


def _settings(found: dict[str, str], role: str) -> Iterator[Finding]:
    """Settings that hurt: (name, does it?, how badly, what it does, repair)."""
    timeout = int(found.get("statement_timeout", "0"))
    of_role, of_server = (
        partial(store.repair, "role_setting", role=role),
        partial(store.repair, "server_setting"),
    )
    rules = [
        (
            "idle_in_transaction_session_timeout",
            found.get("idle_in_transaction_session_timeout") == "0",
            "warn",
            "a client that hangs in a transaction keeps its locks and its snapshot for ever",
            of_role(name="idle_in_transaction_session_timeout", value="'5min'"),
        ),
        (
            "synchronous_commit",
            found.get("synchronous_commit") == "off",
            "fail",
            "a crash of the server loses acknowledged messages",
            of_role(name="synchronous_commit", value="on"),
        ),
        (
            "autovacuum",
            found.get("autovacuum") == "off",
            "fail",
            "the queue's tables grow without end",
            of_server(name="autovacuum"),
        ),
        (
            "track_counts",
            found.get("track_counts") == "off",
            "fail",
            "autovacuum sees nothing to do",
            of_server(name="track_counts"),
        ),
        (
            "fsync",
            found.get("fsync") == "off",
            "fail",
            "a crash of the host can destroy the database",
            of_server(name="fsync"),
        ),
        (
            "full_page_writes",
            found.get("full_page_writes") == "off",
            "warn",
            "a crash of the host can destroy pages",
            of_server(name="full_page_writes"),
        ),
        (
            "statement_timeout",
            0 < timeout < LEAST_STATEMENT_TIMEOUT_MS,
            "warn",
            "statements of workers may be ended",
            of_role(name="statement_timeout", value="'30s'"),
        ),
        (
            "default_transaction_read_only",
            found.get("default_transaction_read_only") == "on",
            "fail",
            "nothing can be written",
            of_role(name="default_transaction_read_only", value="off"),
        ),
        (
            "default_transaction_isolation",
            found.get("default_transaction_isolation") != "read committed",
            "warn",
            "claims meet serialisation errors",
            of_role(name="default_transaction_isolation", value="'read committed'"),
        ),
    ]
    hurting = [rule for rule in rules if rule[1]]
    for name, _, status, text, mend in hurting:
        yield Finding(
            f"setting:{name}", "fail" if status == "fail" else "warn", f"{name} = {found[name]}: {text}", mend
        )
    if not hurting:
        yield Finding("settings", "ok", "no setting of the server hurts")


def _budget(facts: Row, settings: Settings) -> Finding:
    """Most connections that `packhorse worker` of this configuration opens, beside what is open already."""
    pool = max(DEFAULT_POOL_SIZE, settings.threads + 2)
    most = settings.processes * (OWN_CONNECTIONS + pool)
    room = int(facts["connections_open_to_all"])
    limit = int(facts["role_limit"])
    room = min(room, limit) if limit >= 0 else room
    used = int(facts["connections"])
    text = f"{settings.processes} process(es) x ({OWN_CONNECTIONS} + {pool} for handlers) = {most} at most; {used} of {room} are in use now"
    if settings.pooler:
        return Finding("connection_budget", "ok", f"{text}; the pooler shares them")
    mend = "fewer processes or threads, a pooler, or: alter system set max_connections = ...; and a restart"
    if most > room:
        return Finding("connection_budget", "fail", f"{text}: they never fit", mend)
    if most + used > room:
        return Finding(
            "connection_budget",
            "warn",
            f"{text}: they fit only if some of those in use are this configuration's own",
            mend,
        )
    return Finding("connection_budget", "ok", text)
