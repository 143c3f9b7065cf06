"""Broken mutations: the schema with one safeguard cut out, to show that the tests would notice."""

from __future__ import annotations

from packhorse.worker.db.names import Names
from tests.support.postgres import Database


def break_function(database: Database, name: str, old: str, new: str) -> None:
    """Replace a part of a function's text, as its file has it, in this test database; fails when the text is
    not there exactly once.
    """
    old, new = Names().qualified(old), Names().qualified(new)
    definition = str(
        database.value("select pg_get_functiondef(p.oid) from pg_proc p where p.proname = %s", name)
    )
    assert definition.count(old) == 1, f"{name} has {definition.count(old)} of {old!r}: mend the mutation"
    with database.connect(admin=True) as connection:
        connection.execute(definition.replace(old, new).encode(), prepare=False)
