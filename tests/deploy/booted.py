"""Actors of the boot tests; `confined` says what a handler can see and do inside the unit."""

from __future__ import annotations

import os
from pathlib import Path

import dramatiq

from packhorse.schedules import schedule
from tests.support.notes import nap, note


@dramatiq.actor(queue_name="default", actor_name="works")
def works(key: str, seconds: float = 0.0) -> None:
    note("start", key)
    nap(seconds)
    note("effect", key)


schedule(works, name="yearly", cron="0 0 1 1 *", payload={"key": "yearly"})


def _writable(path: str) -> bool:
    try:
        Path(path).write_text("x")
    except OSError:
        return False
    return True


def _readable(path: str) -> bool:
    try:
        return bool(os.listdir(path)) if Path(path).is_dir() else bool(Path(path).read_bytes())
    except OSError:
        return False


@dramatiq.actor(queue_name="default", actor_name="confined")
def confined(key: str) -> None:
    facts = {
        "root": os.getuid() == 0,
        "writes_etc": _writable("/etc/packhorse/x"),
        "writes_opt": _writable("/opt/x"),
        "writes_tmp": _writable("/tmp/x"),
        "reads_credentials": _readable("/etc/packhorse/credentials"),
        "reads_home": _readable("/root"),
        "sees_init": _readable("/proc/1/status"),
        "url_in_environment": any("postgresql://" in value for value in os.environ.values()),
    }
    note("confined", ",".join(name for name, true in facts.items() if true))
