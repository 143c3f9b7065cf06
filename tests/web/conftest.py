"""A page on a fresh database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.page import Page
from tests.support.postgres import Database


@pytest.fixture
def open_page() -> Iterator[Callable[..., Page]]:
    """open_page(database, **settings): a server that ends with the test."""
    pages: list[Page] = []

    def opened(database: Database, **settings: Any) -> Page:
        pages.append(Page(database, **settings))
        return pages[-1]

    yield opened
    for page in pages:
        page.close()


@pytest.fixture
def page(database: Database, open_page: Callable[..., Page]) -> Page:
    """A server on a fresh database, as `packhorse web` starts it."""
    return open_page(database)
