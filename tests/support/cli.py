"""The real command line in a subprocess, as an operator or a script runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.workers import ROOT

COMMAND = [sys.executable, "-m", "worker.cli.main"]


@dataclass(frozen=True)
class Ran:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """stdout as the one JSON document that it is."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """The error that a command with --json printed; its shape is checked here, for all of them."""
        body = json.loads(self.err)
        assert set(body) == {"error"}
        assert {"code", "message", "field", "hint"} <= set(body["error"])
        return body["error"]


class Cli:
    """Runs `packhorse ...` in `folder`, against DATABASE_URL when a url is given."""

    def __init__(self, folder: Path, url: str | None = None, **environment: str) -> None:
        self.folder = folder
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PACKHORSE_") and key != "DATABASE_URL"}
        self.environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
        if url is not None:
            self.environment["DATABASE_URL"] = url

    def __call__(self, *arguments: object, stdin: str | None = None, **environment: str) -> Ran:
        """Run to the end; no traceback may ever be shown."""
        done = subprocess.run(
            [*COMMAND, *map(str, arguments)], cwd=self.folder, env={**self.environment, **environment}, input=stdin if stdin is not None else "",
            capture_output=True, text=True, timeout=60, check=False,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return Ran(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: object, output: Path) -> subprocess.Popen[bytes]:
        """Start in a process group of its own, both streams to a file."""
        with output.open("wb") as stream:
            return subprocess.Popen(
                [*COMMAND, *map(str, arguments)], cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
                start_new_session=True,
            )
