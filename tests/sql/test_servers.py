"""Which PostgreSQL the SQL ring runs on (SPEC O10)."""

from __future__ import annotations

import pytest

from tests.support.postgres import Server, available_servers

MAJORS = {14, 15, 16, 17, 18}


def major_of(name: str) -> int:
    return int(name.lstrip("abcdefghijklmnopqrstuvwxyz"))


def test_the_ring_runs_on_each_major_version() -> None:
    lacking = sorted(MAJORS - {major_of(name) for name in available_servers()})
    if lacking:
        pytest.skip(f"PostgreSQL {', '.join(map(str, lacking))} not installed")


def test_a_server_has_the_version_of_its_name(any_server: Server) -> None:
    database = any_server.create_database()
    assert database.value("select current_setting('server_version_num')::integer / 10000") == major_of(
        any_server.name
    )
    database.drop()
