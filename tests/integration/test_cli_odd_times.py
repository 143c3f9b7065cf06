"""Times that PostgreSQL has and Python has not: the row that brings one hides no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.postgres import Database

pytestmark = pytest.mark.slow


def test_a_time_that_python_does_not_have_is_shown_as_postgres_writes_it(
    database: Database, tmp_path: Path
) -> None:
    odd = "0044-03-15 00:00:00+00 BC"
    message_id = database.value(
        "select message_id from enqueue_message('default', 'effect', p_run_at => %s, p_expires_at => 'infinity')",
        odd,
    )
    plain = database.value("select message_id from enqueue_message('default', 'effect')")
    cli = Cli(tmp_path, database.url)
    listed = {row["id"]: row["run_at"] for row in cli("message", "list", "--json").document}
    assert set(listed) == {message_id, plain} and listed[message_id].endswith(" BC")
    assert " BC" in cli("message", "list").out
    assert cli("message", "show", message_id).code == 0
    assert "infinity" in cli("message", "explain", message_id).out
