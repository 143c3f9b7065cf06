"""Our wheel, built and put by pip into an empty environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.workers import ROOT


def install(folder: Path, *others: str) -> tuple[Path, Path]:
    """(environment, wheel) in this folder; others: packages that go in beside it."""
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    environment = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
    pip = [environment / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, wheel, *others], check=True, capture_output=True)
    return environment, wheel
