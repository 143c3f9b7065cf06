"""The commands of `packhorse`: each is imported and assembled when it is asked for.

To assemble all of them costs a quarter of a second, which nobody pays who knows what he wants.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable

import typer

from packhorse.worker.cli.group import group

#: In the order of the help: module in this folder, and there a function, or a group of commands.
COMMANDS = {
    "up": ("up", "up"),
    "worker": ("worker", "worker"),
    "relay": ("relay", "relay"),
    "scheduler": ("scheduler", "scheduler"),
    "migrate": ("migrate", "app"),
    "copy": ("copies", "app"),
    "enqueue": ("enqueue", "enqueue"),
    "queue": ("queue", "app"),
    "message": ("message", "app"),
    "dead-letter": ("dead_letter", "app"),
    "schedule": ("schedule", "app"),
    "service": ("service", "app"),
    "scope": ("scope", "app"),
    "maintenance": ("maintenance", "app"),
    "partitions": ("partitions", "app"),
    "backfill": ("backfill", "app"),
    "table-care": ("table_care", "table_care"),
    "conversations": ("conversations", "conversations"),
    "conversation": ("conversations", "app"),
    "workers": ("workers", "app"),
    "stats": ("stats", "stats"),
    "health": ("health", "health"),
    "doctor": ("doctor", "doctor"),
    "top": ("top", "top"),
    "web": ("web", "web"),
    "token": ("token", "app"),
    "config": ("config", "app"),
    "deploy": ("deploy", "app"),
}


def assembled(names: Iterable[str] = COMMANDS) -> typer.Typer:
    """`packhorse` with these of its commands."""
    found = group()
    for name in names:
        module, attribute = COMMANDS[name]
        command = getattr(importlib.import_module(f"packhorse.worker.cli.{module}"), attribute)
        if isinstance(command, typer.Typer):
            found.add_typer(command, name=name)
        else:
            found.command(name)(command)
    return found
