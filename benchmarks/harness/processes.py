"""Child processes of the benchmark: start, talk by lines, watch CPU and memory, and always end them.

A child announces itself with the line `ready`; ours also obey lines on their standard input. Every child
leads a process group of its own, so outcome it ends its children as well and nothing else.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MEBIBYTE = 1024 * 1024
STOP_SECONDS = 10.0


class ChildError(RuntimeError):
    """A child ended, or stayed silent, where a line was expected; carries the end of its error output."""


class Child:
    """One started command and everything below it in the process tree."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.command = list(command)
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (open as long as the child)
        self._process = subprocess.Popen(
            self.command,
            env={**os.environ, **env, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="child-lines")
        self._reader.start()

    def _read(self) -> None:
        """Hand over the child's lines; None marks their end."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())
        self._lines.put(None)

    def expect(self, word: str, timeout_seconds: float = 60.0) -> str:
        """Wait for a line that begins with `word` and return what follows it. Raises ChildError."""
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise ChildError(self._complaint(f"said no {word!r} in {timeout_seconds:.0f} s")) from None
            if line is None:
                raise ChildError(self._complaint(f"ended before it said {word!r}"))
            if line.split(" ", 1)[0] == word:
                return line[len(word) :].strip()

    def tell(self, line: str) -> None:
        """Write one line to the child's standard input."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def check(self) -> None:
        """Raise ChildError when the child has ended."""
        if self._process.poll() is not None:
            raise ChildError(self._complaint(f"ended with status {self._process.returncode}"))

    def tree(self) -> list[psutil.Process]:
        """The child and its living descendants; empty when it has ended."""
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to the child's own group after STOP_SECONDS; returns when it is gone."""
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(STOP_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()
        self._errors.close()

    def _complaint(self, what: str) -> str:
        self._errors.seek(0)
        tail = self._errors.read()[-3000:]
        return f"{' '.join(self.command)} {what}\n{tail}"


def python_child(module: str, *arguments: str, env: Mapping[str, str]) -> Child:
    """Start `python -m module arguments` with this interpreter."""
    return Child([sys.executable, "-m", module, *arguments], env)


def peak_bytes(process: psutil.Process) -> int:
    """The most resident memory that a process ever had. Raises OSError or psutil.NoSuchProcess when it has
    ended.
    """
    if sys.platform != "linux":
        return int(process.memory_info().rss)
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


class Workers:
    """The worker processes of one system in one run. processes: how many of them run messages."""

    def __init__(self, children: Sequence[Child], processes: int) -> None:
        self.children = list(children)
        self.processes = processes

    def check(self) -> None:
        """Raise ChildError when one of them has ended."""
        for child in self.children:
            child.check()

    def memory_mib(self) -> float:
        """Memory of all process trees, divided by the worker processes, in MiB.

        Pages that forked processes share count once (proportional set size, where the system tells it).
        """
        return sum(self.sizes_mib("pss")) / self.processes

    def largest_mib(self) -> float:
        """Resident memory of the largest single process, in MiB."""
        return max(self.sizes_mib("rss"), default=0.0)

    def peak_mib(self) -> float:
        """The most resident memory that the largest single process ever had, in MiB; what it has now where
        Linux does not tell.
        """
        peaks: list[float] = []
        for process in self._tree():
            with suppress(psutil.NoSuchProcess, OSError):
                peaks.append(peak_bytes(process) / MEBIBYTE)
        return max(peaks, default=0.0)

    def cpu_seconds(self) -> float:
        """User and system time of all process trees so far, in seconds."""
        total = 0.0
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def stop(self) -> None:
        """End all of them."""
        for child in self.children:
            child.stop()

    def sizes_mib(self, kind: str) -> list[float]:
        """Memory of each process, in MiB; kind: pss or rss, rss where the other is not known."""
        sizes: list[float] = []
        for process in self._tree():
            with suppress(psutil.NoSuchProcess):
                sizes.append(getattr(process.memory_full_info(), kind, process.memory_info().rss) / MEBIBYTE)
        return sizes

    def _tree(self) -> list[psutil.Process]:
        """Every living process of all children."""
        return [process for child in self.children for process in child.tree()]
