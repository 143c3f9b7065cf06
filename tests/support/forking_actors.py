"""Handlers that start processes. `report` leaves what they have seen in the ledger, as `seen <key>
<words>`.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.middleware import AsyncIO, Middleware

import packhorse
from packhorse.worker.broker.postgres import PostgresBroker
from tests.support.notes import nap, note

broker = PostgresBroker()
dramatiq.set_broker(broker)
broker.add_middleware(AsyncIO())


def seen(key: str, *words: object) -> None:
    note("seen", "-".join(map(str, [key, *words])))


class Hooked(Middleware):
    """Forks in the hook that the environment names; the child returns into the loop of whoever called it."""

    def __init__(self) -> None:
        self.where = os.environ.get("FORK_IN_HOOK", "")

    def _fork(self, where: str) -> None:
        if self.where == where:
            pid = os.fork()
            if pid:
                seen(where, exit_code(os.waitpid(pid, 0)[1]))

    def after_process_boot(self, broker: Any) -> None:
        self._fork("boot")

    def after_worker_boot(self, broker: Any, worker: Any) -> None:
        self._fork("worker_boot")

    def after_worker_thread_boot(self, broker: Any, thread: Any) -> None:
        self._fork("thread_boot")

    def before_process_message(self, broker: Any, message: Any) -> None:
        self._fork("before_process")

    def after_process_message(
        self, broker: Any, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        note("hook", os.getpid())
        self._fork("after_process")

    def before_ack(self, broker: Any, message: Any) -> None:
        self._fork("before_ack")


broker.add_middleware(Hooked())


def exit_code(status: int) -> int:
    return os.waitstatus_to_exitcode(status)


def forked(body: Any) -> int | None:
    """Fork; the child runs `body` and goes on as its end says; the parent gets its exit code."""
    pid = os.fork()
    if pid == 0:
        body()
        return None
    return exit_code(os.waitpid(pid, 0)[1])


def leave(way: str) -> None:
    if way == "exit":
        sys.exit(7)
    if way == "text":
        sys.exit("farewell")
    if way == "exception":
        raise ValueError(" ".join(["private", "words"]))


@dramatiq.actor
def leaves(key: str, way: str) -> None:
    note("start", key)
    print(f"printed before {key}", end=" ")
    code = forked(lambda: leave(way))
    if code is not None:
        seen(key, code)


@dramatiq.actor(transactional=True)
def leaves_in_transaction(key: str, way: str) -> None:
    note("start", key)
    packhorse.current_connection().execute("insert into effects (key) values (%s)", (key,))

    def child() -> None:
        try:
            packhorse.current_connection()
        except packhorse.WorkerError:
            seen(key, "no_transaction")
        leave(way)

    code = forked(child)
    if code is not None:
        seen(key, code)


@dramatiq.actor
async def leaves_in_coroutine(key: str, way: str) -> None:
    note("start", key)
    await asyncio.sleep(0.05)
    pid = os.fork()
    if pid == 0:
        leave(way)
        if way == "await":
            await asyncio.sleep(0)
            seen(key, "went_on")
        return
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        await asyncio.sleep(0.02)
    seen(key, exit_code(ended[1]))


@dramatiq.actor
async def counts(key: str) -> None:
    """Goes on beside a coroutine that forks: each step is one line."""
    for step in range(20):
        note("step", f"{key}-{step}")
        await asyncio.sleep(0.02)


@dramatiq.actor
def enqueues_in_child(key: str) -> None:
    def child() -> None:
        leaves.send(f"{key}-child", "return")

    code = forked(child)
    if code is not None:
        seen(key, code)


@dramatiq.actor
def logs(key: str) -> None:
    code = forked(lambda: logging.getLogger("app").warning("from the child of %s", key))
    if code is not None:
        seen(key, code)


# -- signals
def dispositions() -> str:
    """What a process has: handlers of Python, ignored and blocked signals of the kernel, the wake-up
    descriptor, the signal at its parent's death.
    """
    names = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)
    kinds = {signal.SIG_DFL: "default", signal.default_int_handler: "default"}
    handlers = ",".join(kinds.get(signal.getsignal(number), "other") for number in names)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    ignored = int(status["SigIgn"], 16)
    with_ours = [number.name for number in names if ignored >> (number - 1) & 1]
    death = ctypes.c_int()
    ctypes.CDLL(None).prctl(2, ctypes.byref(death))
    return f"{handlers}/{with_ours}/{int(status['SigBlk'], 16)}/{signal.set_wakeup_fd(-1)}/{death.value}".replace(
        " ", ""
    )


def tell_dispositions(key: str) -> None:
    seen(key, dispositions())


def wait_long() -> None:
    nap(60)


TELL = "from tests.support.forking_actors import dispositions, seen; seen({!r}, dispositions())"


@dramatiq.actor
def looks(key: str, how: str) -> None:
    note("start", key)
    program = [sys.executable, "-c", TELL.format(key)]
    if how == "os_fork":
        forked(lambda: (tell_dispositions(key), os._exit(0)))
    elif how in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(how).Process(target=tell_dispositions, args=(key,))
        process.start()
        process.join()
    elif how == "subprocess":
        subprocess.run(program, check=True)
    elif how == "preexec":
        subprocess.run(program, check=True, preexec_fn=lambda: None)
    elif how == "posix_spawn":
        os.waitpid(os.posix_spawn(program[0], program, os.environ), 0)
    elif how == "system":
        with open(f"/tmp/{os.getpid()}-{key}.py", "w") as script:
            script.write(program[2])
        os.system(f"{program[0]} {script.name}")
        os.unlink(script.name)
    elif how == "executor":
        with ProcessPoolExecutor(1) as pool:
            pool.submit(tell_dispositions, key).result()


@dramatiq.actor
def ends(key: str, number: int) -> None:
    """A forked child that a signal reaches at once, before it can do anything."""
    # not multiprocessing: threads that start its processes reap those of others, and may be late to say so
    pid = os.fork()
    if pid == 0:
        wait_long()
        os._exit(0)
    os.kill(pid, number)
    deadline = time.monotonic() + 20
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        nap(0.01)
    seen(key, exit_code(ended[1]) if ended[0] else "alive")


@dramatiq.actor
def pools(key: str, how: str) -> None:
    with multiprocessing.get_context(how).Pool(2) as pool:
        pool.apply_async(time.sleep, (60,))
        seen(key, pool.apply(len, ("four",)))
    seen(key, "left")


@dramatiq.actor
def leaves_a_pool(key: str) -> None:
    pool = multiprocessing.get_context("fork").Pool(1)
    globals()["kept"] = pool
    note("pool", pool._pool[0].pid)  # type: ignore[attr-defined]


# -- sockets
def sockets() -> int:
    """Sockets that are connected to a server. (The event loop has a pair of its own, without names.)"""
    found = 0
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        try:
            with socket.socket(fileno=os.dup(descriptor)) as copy:
                found += bool(copy.getpeername())
        except OSError:
            pass
    return found


@dramatiq.actor
def counts_sockets(key: str, how: str) -> None:
    """Sockets of a child; the worker process itself has several."""
    script = f"from tests.support.forking_actors import seen, sockets; seen({key!r}, sockets())"
    seen("own", sockets() > 2)
    if how == "fork":
        forked(lambda: (seen(key, sockets()), os._exit(0)))
    else:
        os.waitpid(os.posix_spawn(sys.executable, [sys.executable, "-c", script], os.environ), 0)


@dramatiq.actor(transactional=True)
def dies_with_a_helper(key: str, how: str) -> None:
    """The first time it leaves a child behind and is killed, in the middle of its transaction."""
    note("start", key)
    packhorse.current_connection().execute("insert into effects (key) values (%s)", (key,))
    if (packhorse.current_message() or 0).crashes == 0:  # type: ignore[union-attr]
        if how == "fork":
            multiprocessing.get_context("fork").Process(target=helper).start()
        else:
            threading.Thread(target=lambda: os.fork() or helper()).start()
        while not os.path.exists(os.environ["LEDGER"] + ".helper"):
            nap(0.01)
        os.kill(os.getpid(), signal.SIGKILL)


def helper() -> None:
    with open(os.environ["LEDGER"] + ".helper", "w") as file:
        file.write(str(os.getpid()))
    nap(300)
    os._exit(0)
