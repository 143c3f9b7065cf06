"""An actor that leaves processes behind, as careless handlers do: PID 1 inherits them."""

from __future__ import annotations

import os
import subprocess

import dramatiq

from tests.support.notes import nap, note

ORPHAN = 'sleep 0.3; echo "orphan $0 $(awk \'/^PPid/ {print $2}\' /proc/$$/status) $$" >> "$LEDGER"'


@dramatiq.actor(queue_name="default", actor_name="abandons")
def abandons(key: str) -> None:
    """The shell in between ends at once; the process below it outlives both."""
    note("start", key)
    subprocess.run(["sh", "-c", '(sh -c "$1" "$2" &)', "sh", ORPHAN, key], check=True, env=os.environ)
    note("effect", key)


@dramatiq.actor(queue_name="default", actor_name="works")
def works(key: str, seconds: float) -> None:
    note("start", key)
    nap(seconds)
    note("effect", key)
