"""A long run on a terminal shows how far it is, how fast, and when it will be over (SPEC O5, M8)."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.support.cli import Cli
from tests.support.terminal import Terminal

pytestmark = pytest.mark.slow


def test_a_run_of_maintenance_shows_its_progress_rate_and_remaining_time_on_a_terminal_only(
    database, tmp_path
):
    database.query("create schema shop")
    database.query("create table shop.orders (id int primary key, done_at timestamptz)")
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 400) n"
    )
    (tmp_path / "packhorse.toml").write_text(
        '[retention.orders]\ntable = "shop.orders"\ncolumn = "done_at"\nkeep = "7d"\nbatch = 40\n'
    )
    cli = Cli(tmp_path, database.admin_url, TERM="xterm")
    with Terminal(
        cli, "maintenance", "run", "retention.orders", "--yes", columns=200, stdout=subprocess.PIPE
    ) as terminal:
        code, out = terminal.ends()
        text = terminal.plain
    assert code == 0 and "succeeded, 400 rows" in out
    assert (
        "retention.orders" in text
        and "400/400" in text
        and re.search(r"[\d,]+/s", text)
        and re.search(r"\d:\d\d:\d\d", text)
    ), text
    assert re.search(r"\b(40|80|120|160|200|240|280|320|360)/400", text), "it moves"
    database.query(
        "insert into shop.orders select n, now() - interval '1 year' from generate_series(1, 400) n"
    )
    ran = cli("maintenance", "run", "retention.orders", "--yes")
    assert ran.code == 0 and ran.err == "", "nothing is drawn into a pipe"
