"""axe-core on the pages beside the screens: login, errors, a revealed payload, previews, a long act (WCAG 2.2
AA; the screens are in test_stories.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.chromium import Person, browser
from tests.support.page import Page
from tests.support.postgres import Database
from tests.web.test_acts import dead, enqueue

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.mark.parametrize(("width", "dark"), [(1280, True), (360, False)])
def test_login_errors_revealed_and_progress_are_accessible(
    database: Database, page: Page, chromium: Any, width: int, dark: bool
) -> None:
    (waiting,) = enqueue(database, name="a long word " * 20)
    dead(database, 12, "mail")
    found: dict[str, list[str]] = {}
    person = Person(chromium, page, "admin", width=width, dark=dark)
    stranger = chromium.new_context(
        viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light"
    )

    def look(name: str) -> None:
        wide = [f"wider than its window by {person.overflow()} px"] * (person.overflow() > 0)
        if problems := person.violations() + wide:
            found[name] = problems

    for path, said in (
        ("/nothing", "There is no such page."),
        ("/messages/99999999", "no message has the id"),
        ("/messages/none", "is not a whole number"),
    ):
        person.go(path)
        person.sees(said)
        look(path)
    person.go(f"/acts/message.reveal?id={waiting}")
    person.click("Reveal", "button")
    person.sees("This look is recorded")
    look("revealed")
    person.go("/acts/dead-letters.redrive?where=queue%3Dmail")
    person.click("Preview", "button")
    person.sees("12 dead letters would be enqueued again")
    look("preview")
    person.tab.get_by_label("Messages per second").fill("1")
    person.click("Redrive: 12", "button")
    person.sees("Stop after this batch")
    look("progress of a long act that runs")
    person.click("Stop after this batch", "button")
    person.sees("then it was stopped")
    look("progress of a long act that is over")
    person.go("/progress")
    look("list of long acts")
    person.tab.close()
    person.tab = stranger.new_page()
    person.go("/login?then=/queues")
    look("login")
    person.tab.get_by_label("Token").fill("phk_wrong")
    person.click("Log in", "button")
    person.sees("No token in force is this one.")
    look("refused login")
    assert found == {}
    assert [each for each in person.complaints if not each.startswith("error: Failed to load resource")] == []
