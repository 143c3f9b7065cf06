"""docs/cli.md names every command, argument and option that exists, and none that does not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import typer.main

from packhorse.worker import exits
from packhorse.worker.cli.commands import assembled

TEXT = (Path(__file__).resolve().parent.parent.parent / "docs" / "cli.md").read_text()


def commands() -> dict[str, Any]:
    """Every command by its full name, groups resolved."""
    found: dict[str, Any] = {}

    def walk(prefix: str, command: Any) -> None:
        for name, child in getattr(command, "commands", {}).items():
            if hasattr(child, "commands"):
                walk(f"{prefix}{name} ", child)
            else:
                found[f"{prefix}{name}"] = child

    walk("", typer.main.get_command(assembled()))
    return found


def section(command: str) -> str:
    match = re.search(
        rf"^### `packhorse {re.escape(command)}\b[^\n]*\n(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL
    )
    assert match, f"docs/cli.md has no section for `packhorse {command}`"
    return match.group(0)


def options(command: Any) -> set[str]:
    return {
        name
        for parameter in command.params
        for name in getattr(parameter, "opts", [])
        if name.startswith("--")
    } - {"--help"}


def test_there_are_commands_to_document():
    assert {
        "up",
        "worker",
        "enqueue",
        "queue list",
        "message retry",
        "dead-letter redrive",
        "migrate up",
        "config check",
    } <= set(commands())


def test_every_command_and_option_is_documented():
    missing = [
        f"{name} {option}"
        for name, command in commands().items()
        for option in options(command)
        if f"`{option}" not in section(name)
    ]
    assert missing == []


def test_every_documented_command_and_option_exists():
    headings = set(re.findall(r"^### `packhorse ([a-z-]+(?: [a-z-]+)?)", TEXT, re.MULTILINE))
    assert headings == set(commands())
    unknown = [
        f"{name} {option}"
        for name, command in commands().items()
        for option in re.findall(r"^\| `(--[a-z-]+)", section(name), re.MULTILINE)
        if option not in options(command)
    ]
    assert unknown == []


def test_every_exit_code_is_documented():
    codes = {value for name, value in vars(exits).items() if name.startswith("EXIT_")}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)} == codes
