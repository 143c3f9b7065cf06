"""A Python that has imported the command line and forks for each command: an eighth of the cost of a start.

What runs is a process of its own with its own files, folder, environment and exit code, which enters by the
function that the installed `packhorse` enters by. `python -m packhorse.worker.cli.program` itself is started
by every test of a daemon, and by tests/support/cli.py when the environment means something to the
interpreter.
"""

from __future__ import annotations

import array
import gc
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent.parent
#: Variables that Python, or a library while it is imported, looks at.
OF_THE_START = (
    "PYTHON",
    "LANG",
    "LC_",
    "TZ",
    "LD_",
    "TERMINAL_",
    "FORCE_COLOR",
    "NO_COLOR",
    "PY_COLORS",
    "GITHUB_ACTIONS",
    "_TYPER",
    "PSYCOPG",
)
_REQUEST_BYTES = 1 << 20

# by which process; where to ask; the variables it knows
_started: tuple[int, socket.socket, dict[str, str]] | None = None


def knows(environment: dict[str, str]) -> bool:
    """A command with this environment would start as the prepared Python did."""
    return _of_the_start(environment) == _prepared()[1]


def run(
    arguments: list[str],
    folder: Path,
    environment: dict[str, str],
    files: tuple[IO[Any], IO[Any], IO[Any]],
    timeout_seconds: float,
) -> int:
    """Run `packhorse <arguments>` to its end; its exit code, negative for a signal. Several threads may run
    one each.
    """
    request = json.dumps({"arguments": arguments, "folder": str(folder), "environment": environment}).encode()
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine:
        with theirs:
            socket.send_fds(_prepared()[0], [request], [file.fileno() for file in files] + [theirs.fileno()])
        pid = int(mine.recv(100))
        mine.settimeout(timeout_seconds)
        try:
            return int(mine.recv(100))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(arguments, timeout_seconds) from None


def _of_the_start(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(OF_THE_START)}


def _prepared() -> tuple[socket.socket, dict[str, str]]:
    global _started
    if _started is None or _started[0] != os.getpid():
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:  # it ends when it reads the end of this socket: when this process has ended
            subprocess.Popen(
                [sys.executable, "-m", "tests.support.prepared", str(theirs.fileno())],
                env=environment,
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        _started = os.getpid(), mine, _of_the_start(environment)
    return _started[1], _started[2]


# -- in the prepared Python ----------------------------------------------------------------------
def serve(requests: socket.socket) -> Callable[[], None]:
    """Fork for each request. Returns in the fork only: what it shall do, once nothing of this is on its
    stack.
    """
    interrupted = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests
    while True:
        body, fds = _receive(requests)
        if not body:
            sys.exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGINT, interrupted)
            requests.close()
            return _run_and_report(json.loads(body), fds)
        for fd in fds:
            os.close(fd)
        while _reaped():
            pass


def _receive(requests: socket.socket) -> tuple[bytes, list[int]]:
    size = array.array("i").itemsize * 4
    body, more, _, _ = requests.recvmsg(_REQUEST_BYTES, socket.CMSG_SPACE(size))
    fds = array.array("i")
    for _, _, data in more:
        fds.frombytes(data)
    return body, list(fds)


def _reaped() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _run_and_report(request: dict[str, Any], fds: list[int]) -> Callable[[], None]:
    """Fork once more: the one waits for the other, whose exit code nobody else may learn."""
    with socket.socket(fileno=fds.pop()) as reply:
        pid = os.fork()
        if pid:
            reply.send(str(pid).encode())
            reply.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
            os._exit(0)
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[0] = request["folder"]  # where `python -m` looks first
    sys.argv[1:] = request["arguments"]
    return sys.modules["packhorse.worker.cli.program"].main  # type: ignore[no-any-return]


if __name__ == "__main__":
    import packhorse.worker.cli.commands
    import packhorse.worker.cli.program

    packhorse.worker.cli.commands.assembled()  # imports the modules of all commands

    gc.freeze()  # else the collector of each fork would copy all that
    sys.argv[0] = str(packhorse.worker.cli.program.__file__)
    command = serve(socket.socket(fileno=int(sys.argv[1])))
    command()
