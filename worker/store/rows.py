"""Rows of a cursor as dictionaries, for people and scripts: the operator's statements have many columns."""

from __future__ import annotations

import json
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.queries import Statement, sql
from packhorse.worker.records import Row

_JSON_OIDS = frozenset({114, 3802})


def rows(connection: DeadlineConnection, statement: str, parameters: Any = None) -> list[Row]:
    """All rows of a named statement, column by name; json columns decoded, as text when they cannot be."""
    return rows_of(connection, sql(statement), parameters)


def rows_of(connection: DeadlineConnection, statement: Statement, parameters: Any = None) -> list[Row]:
    """The same for a statement that was made of a named one."""
    cursor = connection.execute(statement, parameters)
    columns = [(column.name, column.type_code in _JSON_OIDS) for column in cursor.description or ()]
    return [
        {
            name: decoded(value) if is_json else value
            for (name, is_json), value in zip(columns, row, strict=True)
        }
        for row in cursor.fetchall()
    ]


def value(connection: DeadlineConnection, statement: str, parameters: Any = None) -> Any:
    """The only column of the only row of a named statement; None when there is no row."""
    row = connection.execute(sql(statement), parameters).fetchone()
    return row[0] if row else None


def decoded(text: str | None) -> Any:
    """What a JSON text says; the text itself when Python cannot read it."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # an operator must see a row whatever stands in it
