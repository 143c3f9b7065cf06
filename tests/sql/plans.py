"""Plans of the statements inside the SQL functions: the text is taken from the database, never copied into a
test.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from tests.sql.client import Sql

#: Types of the plpgsql variables that occur in the hot statements.
TYPES = {
    "p_queue": "text",
    "p_limit": "integer",
    "p_types": "text[]",
    "p_held": "text[]",
    "p_since": "timestamptz[]",
    "p_until": "timestamptz[]",
    "p_forward": "text",
    "p_now": "timestamptz",
    "p_ids": "bigint[]",
    "p_tokens": "bigint[]",
    "p_lease": "interval",
    "v_want": "integer",
    "v_picked": "bigint[]",
    "v_stuck_keys": "text[]",
    "v_unkept": "text[]",
    "v_running": "bigint[]",
    "p_key_limit": "integer",
    "p_keys": "text[]",
    "v_key": "text",
    "p_queues": "text[]",
    "v_now": "timestamptz",
}


@dataclass
class Statement:
    """One statement of a function body, its variables turned into parameters."""

    text: str
    names: list[str]
    settings: list[str]  # of the function that callers call, in force when the statement is planned


def statement_of(
    sql: Sql, function: str, start: str, end: str = ";", *, called_by: str | None = None
) -> Statement:
    """The statement of `function` that begins with `start` and stops before `end`, as a call of `called_by`
    runs it.
    """
    body = sql.value("select prosrc from pg_proc where proname = %s", function)
    body, start, end = map(_flat, (body, start, end))
    # as its file has it
    body = (
        re.sub(r" operator\(pg_catalog\.([^)]+)\) ", r"\1", body)
        .replace("pg_catalog.", "")
        .replace("packhorse.", "")
    )
    body = body.replace("p_queue.name", "p_queue")
    body = re.sub(r"\(p_queue([,)])", r"((select q from queues q where q.name = p_queue)\1", body)
    assert body.count(start) == 1, f"{function} has {body.count(start)} statements that begin with {start!r}"
    text = start + body.split(start, 1)[1].split(end, 1)[0]
    text = re.sub(r"\binto v_[a-z_]+(, v_[a-z_]+)*|\binto [a-z_]+(, [a-z_]+)*(?= from )", "", text)
    names = sorted({name for name in re.findall(r"\b[pv]_[a-z_]+\b", text)})
    for place, name in enumerate(names, 1):
        text = re.sub(rf"\b{name}\b", f"${place}", text)
    settings = sql.value("select proconfig from pg_proc where proname = %s", called_by or function)
    return Statement(
        text, names, [setting for setting in settings or [] if not setting.startswith("search_path")]
    )


def _flat(text: str) -> str:
    """Without comments, and wherever its lines end."""
    return re.sub(r"\s+", " ", re.sub(r"--[^\n]*", "", text))


@dataclass
class Plan:
    """A plan that was run: the indexes it used on message_queue and the rows it touched there."""

    indexes: set[str]
    sequential: bool
    touched: int
    buffers: int
    text: str


def run_plan(sql: Sql, statement: Statement, values: dict[str, Any], *, generic: bool = True) -> Plan:
    """Run the statement as a session's cached plan would run; its effects are rolled back."""
    with sql.connection.transaction(force_rollback=True):
        sql.rows(f"set local plan_cache_mode = {'force_generic_plan' if generic else 'force_custom_plan'}")
        prepare(sql, statement, "hot")
        plan = explain(sql, statement, "hot", values)
        sql.rows("deallocate hot")
    return plan


def prepare(sql: Sql, statement: Statement, name: str) -> None:
    for setting in statement.settings:
        key, value = setting.split("=", 1)
        # in a transaction that is rolled back, or for a session that is closed
        sql.rows(f"set {key} = '{value}'")
    types = ", ".join(TYPES[variable] for variable in statement.names)
    sql.connection.execute(
        f"prepare {name} {f'({types})' if types else ''} as {statement.text}".encode(), prepare=False
    )


def explain(sql: Sql, statement: Statement, name: str, values: dict[str, Any]) -> Plan:
    arguments = ", ".join(literal(values[variable]) + "::" + TYPES[variable] for variable in statement.names)
    text = f"explain (analyze, buffers, timing off, format json) execute {name}{f'({arguments})' if arguments else ''}"
    root = sql.connection.execute(text.encode(), prepare=False).fetchone()[0][0]["Plan"]  # type: ignore[index]
    plan = Plan(
        set(), False, 0, root["Shared Hit Blocks"] + root["Shared Read Blocks"], json.dumps(root, indent=1)
    )
    _add(root, plan)
    return plan


def _add(node: dict[str, Any], plan: Plan) -> None:
    if node.get("Relation Name") == "message_queue" and "Scan" in node["Node Type"]:
        loops = node["Actual Loops"]
        removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
        plan.touched += round((node["Actual Rows"] + removed) * loops)
        if "Index Name" in node:
            plan.indexes.add(node["Index Name"])
        plan.sequential = plan.sequential or (node["Node Type"] == "Seq Scan" and loops > 0)
    if node["Node Type"] == "Bitmap Index Scan":
        plan.indexes.add(node["Index Name"])
    for child in node.get("Plans", []):
        _add(child, plan)


def literal(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, list):
        return "array[" + ", ".join(literal(item) for item in value) + "]"
    return "'" + str(value) + "'"
