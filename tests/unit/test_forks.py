"""Children that others' code forks in a process of ours (W10b), one rule at a time; whole workers:
tests/process/test_child_processes.py.
"""

from __future__ import annotations

import os
import signal
import traceback
from types import SimpleNamespace

import pytest

from packhorse.worker import forks
from packhorse.worker.observe.process_stats import REGISTERED, ProcessStats
from packhorse.worker.runtime.executor import Executor
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.threads import ThreadPool


def code_of(body):
    """The exit code of a forked process that runs `body`; 99 when an assertion of its failed, 98 when it came
    back from where it was to end.
    """
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            body()
            code = 98
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def ours(_number, _frame):
    """A handler of a worker process."""


def as_worker(body):
    """Run `body` in a process that has called protect; its code."""

    def worker():
        signal.signal(signal.SIGTERM, ours)
        forks.protect({signal.SIGTERM: ours})
        body()
        os._exit(0)

    return code_of(worker)


def test_what_is_contained_returns_and_raises_as_it_does():
    assert forks.contain(lambda a, *, b: (a, b), 1, b=2) == (1, 2)
    with pytest.raises(KeyError) as caught:
        forks.contain({}.__getitem__, "absent")
    assert caught.value.args == ("absent",)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (SystemExit(), 0),
        (SystemExit(0), 0),
        (SystemExit(3), 3),
        (SystemExit(-1), 255),
        (SystemExit("text"), 1),
        (ValueError("x"), 1),
    ],
)
def test_a_child_that_comes_back_ends_with_the_code_that_it_asked_for(error, code):
    def handler():
        if os.fork() == 0:
            if error is not None:
                raise error
            return
        os._exit(50 + os.waitstatus_to_exitcode(os.wait()[1]))

    assert code_of(lambda: forks.contain(handler)) == (50 + code) % 256


def test_a_child_of_a_child_ends_there_too():
    def handler():
        if os.fork() == 0:
            if os.fork() == 0:
                return
            os._exit(10 + os.waitstatus_to_exitcode(os.wait()[1]))
        os._exit(os.waitstatus_to_exitcode(os.wait()[1]))

    assert code_of(lambda: forks.contain(handler)) == 10


def test_handlers_of_ours_become_the_default_and_those_of_the_application_stay():
    def worker():
        signal.signal(signal.SIGUSR1, ours)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

        def child():
            assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGUSR1) is ours
            assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
            signal.signal(signal.SIGTERM, ours)

            def grandchild():
                assert signal.getsignal(signal.SIGTERM) is ours, "the child's own"

            assert code_of(grandchild) == 98

        assert code_of(child) == 98
        assert signal.getsignal(signal.SIGTERM) is ours
        assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before, "the parent's is as it was"

    assert as_worker(worker) == 0


def test_a_child_writes_no_shared_memory_of_ours_but_a_process_of_ours_does():
    running, stats = RunningIds(2), ProcessStats()
    pool = ThreadPool(Executor(SimpleNamespace(middleware=[])), 2, running, lambda message: None)

    def write():
        stats.tick("fetcher", 1.0)
        stats.states[REGISTERED] = 1.0
        stats.totals[0] = 5.0
        pool.slots[1].enter(SimpleNamespace(id=7), 0.0)

    assert as_worker(lambda: code_of(write)) == 0
    assert (running.read(), list(stats.totals[:1]), stats.ticks(), stats.states[REGISTERED]) == (
        [],
        [0.0],
        {},
        0.0,
    )
    pid = forks.fork_own()
    if pid == 0:
        stats.tick("fetcher", 1.0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert stats.ticks() == {"fetcher": 1.0}
