"""Our wheel, built and put by pip into an empty environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.workers import ROOT


def install(folder: Path, *others: str) -> tuple[Path, Path]:
    """(environment, wheel) in this folder, without extras; others: packages that go in beside it."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)],
        check=True,
        capture_output=True,
    )
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    add(environment, str(wheel), *others)
    return environment, wheel


def add(environment: Path, *packages: str) -> None:
    """Put packages into an environment, in the versions that the constraints name."""
    pip = [
        environment / "bin/pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--constraint",
        ROOT / "constraints.txt",
    ]
    subprocess.run([*pip, *packages], check=True, capture_output=True)
