"""Where the servers of one test run keep their data: in memory if there is enough, else below /tmp.

A database is four hundred small files. There are disks on which making them takes half a second of the
kernel's time; in memory it is twenty milliseconds. Kills mean the same in both places: what a server has
written is the kernel's.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_VARIABLE = "PH_TEST_RUN"  # the processes of one run (pytest-xdist) find their folder by it
_PREFIX = "packhorse-tests-"
#: What a whole ring may need with a server or two for each of its processes.
_ENOUGH_BYTES = 6 * 2**30

_alive: list[IO[str]] = []  # the lock of a folder that this process made, as long as it lives


def run_folder() -> Path:
    """The folder of this run. The process that asks first makes it, and removes it when it ends."""
    if _VARIABLE not in os.environ:
        os.environ[_VARIABLE] = str(_make(_place()))
    return Path(os.environ[_VARIABLE])


@contextmanager
def only_one(name: str) -> Iterator[None]:
    """One process of the run at a time."""
    with (run_folder() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _place() -> Path:
    memory = Path("/dev/shm")
    try:
        meant = memory.is_mount() and min(shutil.disk_usage(memory).free, _available_bytes()) >= _ENOUGH_BYTES
    except FileNotFoundError:
        meant = False  # not Linux
    return memory if meant else Path("/tmp")  # not gettempdir(): a socket's path must be short


def _available_bytes() -> int:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _make(place: Path) -> Path:
    for left in place.glob(f"{_PREFIX}*"):
        _remove_if_left_behind(left)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=place))
    folder.chmod(0o755)  # servers run as another user when the tests run as root
    lock = (folder / "alive").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    _alive.append(lock)
    atexit.register(_remove_own, folder, os.getpid())
    return folder


def _remove_if_left_behind(folder: Path) -> None:
    """A run that was killed could not clean up; its lock ended with it."""
    try:
        with (folder / "alive").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass  # it lives, or is being made, or somebody else's


def _remove_own(folder: Path, maker: int) -> None:
    if os.getpid() == maker:  # not a fork of it
        shutil.rmtree(folder, ignore_errors=True)
