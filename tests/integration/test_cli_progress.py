"""A long run on a terminal shows how far it is, how fast, and when it will be over (SPEC O5, M8)."""

from __future__ import annotations

import os
import pty
import re
import subprocess

import pytest

from tests.support.cli import COMMAND, Cli

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
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "maintenance", "run", "retention.orders", "--yes"],
        cwd=tmp_path,
        env=cli.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=slave,
    )
    os.close(slave)
    drawn = b""
    try:
        while data := os.read(master, 65536):
            drawn += data
    except OSError:  # the other side is closed: it has ended
        pass
    out = process.communicate(timeout=30)[0].decode()
    os.close(master)
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", drawn.decode())
    assert process.returncode == 0 and "succeeded, 400 rows" in out
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
