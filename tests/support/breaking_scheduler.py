"""A module for `packhorse scheduler` that breaks its loop, as a bug would, while the file that BREAKAGE names
is there.

What stands in the file: `block` stands still, `kill` ends the thread without a word.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from packhorse.schedules.timetable.scheduler import Scheduler

_turn = Scheduler.run_once


def _broken_turn(self: Scheduler) -> float:
    file = Path(os.environ["BREAKAGE"])
    if file.exists():
        if file.read_text() == "kill":
            raise SystemExit  # not an Exception: the top of the loop does not see it
        time.sleep(3600)
    return _turn(self)


Scheduler.run_once = _broken_turn  # type: ignore[method-assign]
