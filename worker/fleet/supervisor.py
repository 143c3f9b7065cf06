"""The parent of worker processes (SPEC W7): forks, watches, replaces, recovers, restarts.

The parent has one thread, no database connection and none of the actors' code: it can always fork. What ran
in a child that ended stands in shared memory; a short-lived child of its own gives it back at once. An end
that the child has not noted there as its own is a crash, whatever its exit code. What was there at two
crashes runs apart: in one more child, which is started for such messages and ends after them (SPEC P5). When
that one dies with several of them, the next one runs them one by one: then it is clear which it was. Metrics
and probes are served by one more child, whose death harms nobody (worker/fleet/exporter.py). Signals:
TERM/INT drain (again: interrupt), HUP replaces the children one by one, if a preflight says that new ones
would start. A child that does not come to the end of its drain is killed, whatever it drains for. One that
cannot work at all ends the parent only as long as none ever could.
"""

from __future__ import annotations

import logging
import math
import os
import select
import signal
import time
from collections.abc import Callable
from functools import partial
from uuid import UUID, uuid4

from packhorse.worker import forks
from packhorse.worker.config import Settings
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXPECTED_CHILD_EXITS, FATAL_CHILD_EXITS
from packhorse.worker.fleet.child import (
    STOP_SIGNALS,
    Lost,
    MakeProcess,
    Once,
    preflight,
    recover,
    run_worker_process,
)
from packhorse.worker.fleet.children import (
    STABLE_SECONDS,
    Child,
    described,
    flush_output,
    kill,
    replaced_why,
    share_memory,
)
from packhorse.worker.fleet.monitor import Monitor
from packhorse.worker.observe.fleet_stats import EXPORTER_TICK, STARTED, FleetStats
from packhorse.worker.observe.logging import flush as flush_log
from packhorse.worker.observe.process_stats import (
    DRAIN_ASKED,
    DRAINING,
    HURRY,
    ISOLATED_AT,
    ISOLATION,
    REGISTERED,
    ProcessStats,
)
from packhorse.worker.observe.systemd import Notifier
from packhorse.worker.runtime import folder
from packhorse.worker.runtime.running_ids import RunningIds

logger = logging.getLogger("packhorse.supervisor")

#: Messages that run apart: so many at once.
ISOLATION_THREADS = 4
KILL_MARGIN_SECONDS = 15.0
EXPORTER_STOP_SECONDS = 5.0
#: Without the application's folder no process is started; it is looked for this often.
FOLDER_SECONDS = 1.0

RunChild = Callable[[Settings, RunningIds, UUID, ProcessStats], int]


class Supervisor:
    """Keeps settings.processes children alive until told to stop. Use from the main thread.

    make_process: makes what a child is; None: an ordinary worker process.
    """

    nap_seconds = 1.0  # at most: hung children, the watchdog

    def __init__(
        self,
        settings: Settings,
        run_child: RunChild | None = None,
        notifier: Notifier | None = None,
        make_process: MakeProcess | None = None,
    ) -> None:
        self.settings = settings.model_copy(update={"app_dir": folder.find(settings.app_dir, os.environ)})
        self._folder_problem: str | None = None  # as it was said
        self._refusal = Once()
        self._run_child = run_child or partial(run_worker_process, refusal=self._refusal, make=make_process)
        self._make_process = make_process
        self._children = [Child(RunningIds.of(settings)) for _ in range(settings.processes)]
        self._children.append(Child(RunningIds.of(settings, threads=ISOLATION_THREADS), isolation=True))
        running = [child.running for child in self._children]
        self.fleet_stats = FleetStats(
            settings.processes, [ids.busy for ids in running], [ids.awaiting for ids in running]
        )
        self._monitor = Monitor(self.fleet_stats, notifier or Notifier({}), settings.hang_seconds)
        self._exporter = Child(RunningIds(0)) if settings.metrics_port else None
        self._recovering: set[int] = set()  # pids of children that give back what a dead one held
        self._preflight = 0  # pid of the child that tries out what a reload would start
        self._preflight_late_at = math.inf  # from then on it is said that it takes long
        self._signals: list[int] = []  # appended by signal handlers, read by the loop
        self._stops = 0
        self._fatal = EXIT_OK
        self._wakeup = -1

    def run(self) -> int:
        """Run until stopped; 0 after a good drain, the child's code when it cannot work at all."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, lambda signum, _frame: self._signals.append(signum))
        self._wakeup, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        share_memory(self.settings.processes)
        logger.info(
            "supervisor_started pid=%d processes=%d app_dir=%s",
            os.getpid(),
            self.settings.processes,
            self.settings.app_dir,
        )
        while True:
            self._handle_signals()
            self._reap()
            if self._stops:
                if not self._recovering and not any(child.pid for child in self._children):
                    break
            else:
                self._start_missing()
                self._say_late_preflight()
                self._roll()
            self._kill_late()
            self._start_exporter()
            self._look()
            self._nap()
        self._stop_exporter()
        logger.info("supervisor_stopped exit_code=%d", self._fatal)
        return self._fatal

    def _nap(self) -> None:
        """Wait for a signal (a byte on the wake-up pipe) or for the next moment at which something is due."""
        due = [
            child.start_after - time.monotonic()
            for child in self._children
            if not child.pid and not child.isolation
        ]
        timeout = min([self.nap_seconds, *due]) if not self._stops else self.nap_seconds
        if select.select([self._wakeup], [], [], max(0.0, timeout))[0]:
            os.read(self._wakeup, 4096)

    def _handle_signals(self) -> None:
        # an operator; a child has learnt it
        if not self._stops and any(stats.states[DRAIN_ASKED] for stats in self.fleet_stats.children):
            logger.info("drain_asked pid=%d", os.getpid())
            self._signals.append(signal.SIGTERM)
        while self._signals:
            number = self._signals.pop(0)
            if number in (signal.SIGTERM, signal.SIGINT):
                self._stop_children()
                self._stops += 1
            elif number == signal.SIGHUP and not self._stops:
                self._monitor.reloading()
                kill(self._preflight, signal.SIGKILL)  # it may have seen older code
                self._preflight = self._fork(
                    lambda: preflight(self.settings, self.fleet_stats.made_by, self._make_process)
                )
                self._preflight_late_at = time.monotonic() + self.settings.hang_seconds
                if not self._preflight:
                    self._on_preflight(EXIT_FAILED)

    def _say_late_preflight(self) -> None:
        """An import may take minutes, or hang: who asked for the reload sees nothing else of it."""
        if self._preflight and time.monotonic() >= self._preflight_late_at:
            self._preflight_late_at = math.inf
            logger.warning(
                "reload_waits pid=%d seconds=%.0f: the new code is still being imported",
                self._preflight,
                self.settings.hang_seconds,
            )

    def _stop_children(self) -> None:
        """Pass a stop on. A second one is said in shared memory: a signal that comes twice may mean the same
        stop (sent to the whole group, or to a child that drains already)."""
        if not self._stops:
            self._monitor.stopping()
        kill(self._preflight, signal.SIGKILL)
        for pid in self._recovering:
            kill(pid, signal.SIGTERM)
        for child, stats in zip(self._children, self.fleet_stats.children, strict=True):
            if child.pid:
                stats.states[HURRY] = bool(self._stops)
                kill(child.pid, signal.SIGTERM)

    def _roll(self) -> None:
        """Rolling restart: one child at a time drains and is replaced; the next one when the new one is
        registered.
        """
        waiting = [child for child in self._children if child.retiring and child.pid]
        if waiting and self._all_registered():
            first = waiting[0]
            if first.started_at:
                logger.info("child_retiring pid=%d", first.pid)
                kill(first.pid, signal.SIGTERM)
                first.started_at = 0.0  # told once
                first.drains_since = time.monotonic()

    def _all_registered(self) -> bool:
        return all(
            child.pid and stats.states[REGISTERED]
            for child, stats in zip(self._children, self.fleet_stats.workers, strict=False)
        )

    def _start_missing(self) -> None:
        now = time.monotonic()
        for child, stats in zip(self._children, self.fleet_stats.children, strict=True):
            due = (
                not child.pid
                and now >= child.start_after
                and (not child.isolation or self._isolation_wanted())
            )
            if due and self._folder_is_there(child):
                child.id = uuid4()
                child.running.clear()
                child.retiring = child.hung = False
                child.drains_since = 0.0
                stats.states[ISOLATION] = child.isolation
                child.pid = self._fork(lambda child=child, stats=stats: self._run_worker(child, stats))  # type: ignore[misc]
                child.started_at = now
                if not child.pid:
                    child.ended(0.0, expected=False)
                elif child.isolation:
                    logger.warning("isolation_started pid=%d threads=%d", child.pid, self._threads(child))

    def _isolation_wanted(self) -> bool:
        """Has one of the others seen messages that are to run apart? Asked when no child for them lives; the
        answer is used up.
        """
        seen = [stats for stats in self.fleet_stats.workers if stats.states[ISOLATED_AT]]
        for stats in seen:
            stats.states[ISOLATED_AT] = 0
        return bool(seen)

    def _threads(self, child: Child) -> int:
        most = self.settings.threads
        return most if not child.isolation else 1 if child.alone else min(most, ISOLATION_THREADS)

    def _run_worker(self, child: Child, stats: ProcessStats) -> int:
        """In the child: its exit code, noted as one that is its own."""
        most = self._threads(child)
        settings = {"threads": most, "coroutines": most if child.isolation else self.settings.coroutines}
        code = self._run_child(self.settings.model_copy(update=settings), child.running, child.id, stats)
        stats.end_with(code)
        return code

    def _folder_is_there(self, child: Child) -> bool:
        """Can a process start there? A release may be taken away, and come back; it is said once."""
        path = self.settings.app_dir
        problem = folder.problem(path) if path is not None else None
        if problem is not None:
            child.start_after = time.monotonic() + FOLDER_SECONDS
            if problem != self._folder_problem:
                logger.error(
                    "app_dir_missing path=%s error=%s: no process can start until it is back", path, problem
                )
        elif self._folder_problem is not None:
            logger.info("app_dir_found path=%s", path)
        self._folder_problem = problem
        return problem is None

    def _start_exporter(self) -> None:
        exporter = self._exporter
        if exporter is not None and not exporter.pid and time.monotonic() >= exporter.start_after:
            self.fleet_stats.cells[EXPORTER_TICK] = 0
            exporter.pid = self._fork(self._run_exporter)
            exporter.started_at = time.monotonic()
            if not exporter.pid:
                exporter.ended(0.0, expected=False)

    def _run_exporter(self) -> int:
        from packhorse.worker.fleet.exporter import run_exporter  # only this child needs an HTTP server

        return run_exporter(self.settings, self.fleet_stats)

    def _stop_exporter(self) -> None:
        """The last to go: until here the probes could be asked."""
        if self._exporter is None or not self._exporter.pid:
            return
        kill(self._exporter.pid, signal.SIGTERM)
        deadline = time.monotonic() + EXPORTER_STOP_SECONDS
        while self._exporter.pid:
            self._reap()
            if self._exporter.pid and time.monotonic() >= deadline:
                kill(self._exporter.pid, signal.SIGKILL)
            self._nap()

    def _look(self) -> None:
        """What does not tick any more is killed, and then replaced like everything that died."""
        self._monitor.look(
            sum(bool(child.pid) for child in self._children if not child.isolation),
            bool(self._stops),
            bool(self._preflight)
            or any(child.retiring for child in self._children)
            or not self._all_registered(),
        )
        for index, child in enumerate(self._children):
            loops = self._monitor.hung(index) if child.pid and not child.hung else []
            if loops:
                logger.error(
                    "child_hung pid=%d loops=%s hang_seconds=%.0f",
                    child.pid,
                    ",".join(loops),
                    self.settings.hang_seconds,
                )
                child.hung = True
                kill(child.pid, signal.SIGKILL)
        if self._exporter is not None and self._exporter.pid and self._monitor.exporter_hung():
            kill(self._exporter.pid, signal.SIGKILL)

    def _fork(self, body: Callable[[], int]) -> int:
        """A new process that runs `body`; 0 when the system has none to give: those that live go on."""
        flush_output()
        signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)  # until the child has handlers of its own
        try:
            pid = forks.fork_own()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            logger.error("fork_failed error=%s", error)
            return 0
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
            return pid
        code = EXIT_FAILED
        try:
            code = body()
        except BaseException:  # the child must never return into the parent's loop
            logger.critical("child_failed pid=%d", os.getpid(), exc_info=True)
        finally:
            flush_log()
            flush_output()
            os._exit(code)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self._recovering.clear()
                return
            if pid == 0:
                return
            self._recovering.discard(pid)
            if pid == self._preflight:
                self._on_preflight(os.waitstatus_to_exitcode(status))
            for index, child in enumerate(self._children):
                if child.pid == pid:
                    self._on_exit(index, child, os.waitstatus_to_exitcode(status))
            if self._exporter is not None and self._exporter.pid == pid:
                self._on_exporter_exit(self._exporter, os.waitstatus_to_exitcode(status))

    def _on_preflight(self, code: int) -> None:
        self._preflight = 0
        if code == EXIT_OK:
            for child in self._children:
                child.retiring = bool(child.pid) or not child.isolation
        elif not self._stops:
            logger.error(
                "reload_refused exit_code=%d: new processes would not start, the old ones go on", code
            )

    def _on_exit(self, index: int, child: Child, code: int) -> None:
        lived = time.monotonic() - (child.started_at or time.monotonic() - STABLE_SECONDS)
        pid, child.pid = child.pid, 0
        if self.fleet_stats.children[index].states[REGISTERED]:
            self.fleet_stats.cells[STARTED] = 1
        lost = Lost(child.running.started(), child.running.overdue(), child.running.refused())
        ordered = self.fleet_stats.children[index].ended_with(code)
        self.fleet_stats.fold(index)
        if child.isolation:
            self._isolation_ended(child, index, good=ordered and code == EXIT_OK)
        wanted = ordered and code == EXIT_OK and bool(self._stops or child.retiring or child.isolation)
        if not wanted:
            logger.warning("child_exited pid=%d exit_code=%d running=%d", pid, code, len(lost.started))
        if ordered and code in FATAL_CHILD_EXITS and not self.fleet_stats.cells[STARTED]:
            self._fatal = code
            if not self._stops:
                self._stop_children()
                self._stops = 1
            return
        self._refusal.allow()
        child.retiring = child.retiring and not child.isolation  # nothing is to replace it
        if not (ordered and code == EXIT_OK):
            self._recover(child, lost, f"child {pid} ended with {described(code)}", crashed=not ordered)
        if not self._stops and not (wanted and child.isolation):
            self.fleet_stats.restarted(replaced_why(child, code, ordered))
        child.ended(lived, wanted or (ordered and code in EXPECTED_CHILD_EXITS))

    def _isolation_ended(self, child: Child, index: int, *, good: bool) -> None:
        """Nobody follows in its place: what it could not do is nobody's duty. Whether another one is wanted,
        the next claims say.
        """
        self.fleet_stats.children[index].duties.forget()
        self._isolation_wanted()
        if good:
            child.alone = False

    def _on_exporter_exit(self, exporter: Child, code: int) -> None:
        pid, exporter.pid = exporter.pid, 0
        if code != EXIT_OK or not self._stops:
            logger.warning("exporter_exited pid=%d exit_code=%d", pid, code)
            self.fleet_stats.failed("exporter")
        exporter.ended(time.monotonic() - exporter.started_at, False)

    def _recover(self, child: Child, lost: Lost, detail: str, *, crashed: bool) -> None:
        """Give back what an ended child held, in a child of its own: the parent keeps no connection."""
        if child.isolation:
            child.alone = crashed and len(lost.started) > 1
            if child.alone:
                crashed, detail = (
                    False,
                    f"{detail} while {len(lost.started)} messages ran apart; now they run one by one",
                )
        worker_id = child.id
        once, parent = bool(self._stops), self.fleet_stats.made_by
        pid = self._fork(
            lambda: recover(self.settings, worker_id, lost, detail, crashed=crashed, once=once, parent=parent)
        )
        if pid:
            self._recovering.add(pid)

    def _kill_late(self) -> None:
        """Whoever takes too long to end, at a stop, at a reload or because it ends by itself to be
        replaced.
        """
        limit = self.settings.drain_seconds + self.settings.call_deadline_seconds + KILL_MARGIN_SECONDS
        now = time.monotonic()
        for child, stats in zip(self._children, self.fleet_stats.children, strict=True):
            if not child.pid or child.hung:
                continue
            if not child.drains_since and (self._stops or stats.states[DRAINING]):
                child.drains_since = now
            if child.drains_since and now - child.drains_since > limit:
                logger.error("child_killed pid=%d: it did not end within %.0f s", child.pid, limit)
                child.hung = True
                kill(child.pid, signal.SIGKILL)
