"""The pytest plugin of Packhorse (entry point `packhorse`): fixtures for an application's tests (SPEC W12).

Loaded by every pytest run in an environment with Packhorse: it imports what a fixture needs when one is used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from packhorse.worker.testing.captured import SentMessages
    from packhorse.worker.testing.queue import PackhorseDatabase, PackhorseQueue

URL = "PACKHORSE_TEST_DATABASE_URL"


@pytest.fixture
def packhorse_sent() -> Iterator[SentMessages]:
    """What the test sends, as a list; no database is asked (packhorse.testing.captured)."""
    from packhorse.worker.testing.captured import captured

    with captured() as sent:
        yield sent


@pytest.fixture(scope="session")
def packhorse_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackhorseDatabase]:
    """A database with the schema: that of PACKHORSE_TEST_DATABASE_URL, else an embedded PostgreSQL for this
    run.
    """
    url = os.environ.get(URL)
    if url:
        from packhorse.worker.testing.queue import PackhorseDatabase

        yield PackhorseDatabase.given(url, os.environ.get("PYTEST_XDIST_WORKER"))
    else:
        with _embedded(tmp_path_factory.mktemp("packhorse")) as database:
            yield database


def _embedded(folder: Path) -> AbstractContextManager[PackhorseDatabase]:
    """A server with its data in this folder. Without the extra that carries it a test needs no traceback to
    say so.
    """
    from packhorse.worker.db.embedded import EmbeddedMissing, programs
    from packhorse.worker.testing.queue import PackhorseDatabase

    try:
        programs()
    except EmbeddedMissing:
        pytest.fail(str(EmbeddedMissing(f"set {URL} to a database for tests")), pytrace=False)
    return PackhorseDatabase.embedded(folder)


@pytest.fixture
def packhorse_queue(
    packhorse_database: PackhorseDatabase, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PackhorseQueue]:
    """An empty queue. DATABASE_URL leads to it, and the broker that dramatiq knows sends to it."""
    from packhorse.worker.testing.queue import PackhorseQueue, current_broker, using

    packhorse_database.empty()
    monkeypatch.setenv("DATABASE_URL", packhorse_database.url)
    broker = current_broker()
    with ExitStack() as stack:
        if broker is not None:
            stack.enter_context(using(broker, packhorse_database.settings()))
        yield PackhorseQueue(packhorse_database)
