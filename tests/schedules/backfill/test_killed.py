"""kill -9 at any statement: no row is lost, none is done twice (SPEC M8). SOAK_SEEDS sets how many seeds
(`make soak`).
"""

from __future__ import annotations

import os

import pytest

import packhorse
from packhorse.schedules.backfill import declare
from tests.schedules.backfill.killing import killed_until_done

pytestmark = pytest.mark.slow

SEEDS = range(int(os.environ.get("SOAK_SEEDS", "10")))


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_are_copied_once_each_whoever_is_killed(database, declared, shop, small_batches, seed):
    """The copy only appends: a batch that was done twice would show, and so would one that was left out."""
    database.query("create table shop.copies (id bigint)")

    @packhorse.backfill("copies", table="shop.users", verify=lambda connection: 0)
    def copies(connection, keys):
        connection.execute("select pg_sleep(0.003)")
        connection.execute("insert into shop.copies select unnest(%s::bigint[])", (keys,))

    killed_until_done(database.admin_url, lambda: declare.find("copies"), seed)
    assert database.query("select count(*), count(distinct id), min(id), max(id) from shop.copies") == [
        (1000, 1000, 1, 1000)
    ]
    assert database.query("select state, rows_copied, rows_done from backfill_progress") == [
        ("verified", 1000, 1000)
    ]
