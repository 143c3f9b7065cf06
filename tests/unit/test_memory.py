"""How often a worker process with coroutines looks for cyclic garbage."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import gc
{before}
from packhorse.worker.runtime.memory import collect_seldom
collect_seldom()
print(*gc.get_threshold(), gc.get_freeze_count() > 0)
"""


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "20000 20 50 True"),
        ("gc.set_threshold(5000, 7, 7)", "5000 7 7 True"),
        ("gc.disable()", "20000 20 50 True"),
    ],
    ids=["usual", "the application's own", "off"],
)
def test_thresholds_of_the_application_stay_and_the_usual_ones_are_raised(before: str, after: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == after
