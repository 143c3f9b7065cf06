"""Debian's Chromium for a test: people with roles, what they see, and what the browser complains about."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.page import Page
from tests.support.workers import ROOT

AXE = ROOT / ".ci" / "browser" / "node_modules" / "axe-core" / "axe.min.js"
#: A condition is waited for so long, on a machine with other work, too; what comes sooner waits no longer.
PATIENCE_SECONDS = 60.0
#: Who comes with which role.
NAMES = {"viewer": "vera", "operator": "olu", "admin": "ada"}
PICTURES = ROOT / "docs" / "images"


@contextmanager
def browser() -> Iterator[Any]:
    """A browser without a window; skips where it, or what drives it, is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="could not import playwright")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        # root has no sandbox; the page under test is ours
        found = driver.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"],
            timeout=PATIENCE_SECONDS * 1000,
        )
        yield found
        found.close()


class Person:
    """Somebody at a browser, logged in with a token of this role. complaints: of the console, and scripts
    that failed.
    """

    def __init__(
        self,
        browser: Any,
        page: Page,
        role: str,
        *,
        width: int = 1280,
        dark: bool = False,
        scripts: bool = True,
    ) -> None:
        self.page = page
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
            java_script_enabled=scripts,
        )
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(PATIENCE_SECONDS * 1000)
        self.complaints: list[str] = []
        self.tab.on(
            "console",
            lambda said: (
                self.complaints.append(f"{said.type}: {said.text}")
                if said.type in ("error", "warning")
                else None
            ),
        )
        self.tab.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        self.tab.on(
            "response",
            lambda answer: (
                self.complaints.append(f"{answer.status}: {answer.url}") if answer.status >= 500 else None
            ),
        )
        self.go("/login")
        self.tab.get_by_label("Token").fill(page.token(role, NAMES[role]))
        self.tab.get_by_role("button", name="Log in").click()
        self.tab.wait_for_url(lambda address: "/login" not in address)

    def go(self, path: str) -> None:
        self.tab.goto(self.page.url + path, wait_until="domcontentloaded")

    def click(self, name: str, role: str = "link") -> None:
        self.tab.get_by_role(role, name=name, exact=True).first.click()

    def sees(self, text: str, timeout_seconds: float = PATIENCE_SECONDS) -> None:
        """Waits for a text; what refreshes by itself may bring it."""
        self.tab.get_by_text(text).first.wait_for(timeout=timeout_seconds * 1000)

    def act(self, button: str, reason: str, *, final: str | None = None, **fields: str) -> None:
        """Open the form of an act by its button, fill it in, and press its last button."""
        self.click(button)
        for label, value in fields.items():
            self.tab.get_by_label(label.replace("_", " "), exact=False).first.fill(value)
        self.tab.get_by_label("Why").fill(reason)
        self.click(final or button, "button")

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.2 AA. By evaluate: the page's policy lets no script in that is
        not its own.
        """
        if not AXE.exists():
            pytest.skip("axe-core is not installed")
        self.tab.evaluate(AXE.read_text())
        tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
        found = self.tab.evaluate("tags => axe.run(document, {runOnly: tags})", tags)
        return [
            f"{each['id']}: {node['html'][:160]}"
            for each in found["violations"]
            for node in each["nodes"][:3]
        ]

    def overflow(self) -> int:
        """Pixels that the page is wider than its window."""
        return int(
            self.tab.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        )

    def picture(self, name: str) -> None:
        """For the docs, when TESTS_SCREENSHOTS is set."""
        if os.environ.get("TESTS_SCREENSHOTS"):
            PICTURES.mkdir(exist_ok=True)
            path: Path = PICTURES / f"{name}.png"
            self.tab.screenshot(path=str(path), animations="disabled")
