"""The real command line in a process of its own, as an operator or a script runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support import prepared
from tests.support.workers import ROOT

TIMEOUT_SECONDS = 60
COMMAND = [sys.executable, "-m", "packhorse.worker.cli.program"]


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
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith("PACKHORSE_") and key != "DATABASE_URL"
        }
        self.environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "200", **environment}
        if url is not None:
            self.environment["DATABASE_URL"] = url

    def __call__(self, *arguments: object, stdin: str | None = None, **environment: str) -> Ran:
        """Run to the end; no traceback may ever be shown."""
        complete = {**self.environment, **environment}
        with (
            tempfile.TemporaryFile("w+") as given,
            tempfile.TemporaryFile("w+") as out,
            tempfile.TemporaryFile("w+") as err,
        ):
            given.write(stdin or "")
            given.seek(0)
            if prepared.knows(complete):
                code = prepared.run(
                    list(map(str, arguments)), self.folder, complete, (given, out, err), TIMEOUT_SECONDS
                )
            else:
                code = subprocess.run(
                    [*COMMAND, *map(str, arguments)],
                    cwd=self.folder,
                    env=complete,
                    stdin=given,
                    stdout=out,
                    stderr=err,
                    timeout=TIMEOUT_SECONDS,
                    check=False,
                ).returncode
            out.seek(0)
            err.seek(0)
            ran = Ran(code, out.read(), err.read())
        assert "Traceback" not in ran.err, ran.err
        return ran

    def start(self, *arguments: object, output: Path) -> subprocess.Popen[bytes]:
        """Start in a process group of its own, both streams to a file."""
        with output.open("wb") as stream:
            return subprocess.Popen(
                [*COMMAND, *map(str, arguments)],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
