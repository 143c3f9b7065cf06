"""What several tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest

from packhorse.worker.attempt.heartbeat import Heartbeat
from packhorse.worker.db.connection import connect
from tests.support.harness import quick_settings
from tests.support.postgres import Database


@pytest.fixture
def heartbeat(database: Database) -> Iterator[Heartbeat]:
    """That of a registered process that holds nothing; the test starts it, or takes its turns."""
    heartbeat = Heartbeat(
        lambda: connect(database.url),
        uuid4(),
        quick_settings(database),
        lambda: [],
        lambda message, held: None,
    )
    with connect(database.url) as connection:
        heartbeat.register(connection, ["default"], ["mine"], 4)
    yield heartbeat
    heartbeat.stop()
    heartbeat.wait(10)
    heartbeat.on_stop()
