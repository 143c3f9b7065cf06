"""The composition: database, stand-in, workers, feed and view; started in this order and ended in the
opposite one.

Ctrl-C stops the feed, lets the workers drain, sums up and exits 0. Exit codes are worker/exits.py's; `demo`
exits 0 only when everything adds up.
"""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

from examples.whatsapp.assistant_api import AssistantApi
from examples.whatsapp.cloud_api import CloudApi
from examples.whatsapp.database import open_connection, ready_database
from examples.whatsapp.events import Events
from examples.whatsapp.feed import PEOPLE, Deliveries, Feed
from examples.whatsapp.office import Office
from examples.whatsapp.order import OrderBook
from examples.whatsapp.page import Page
from examples.whatsapp.summary import Summary
from examples.whatsapp.upkeep import Upkeep
from examples.whatsapp.view import View, say
from examples.whatsapp.watch import Monitor, Picture
from examples.whatsapp.workers import Workers
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.embedded import programs
from packhorse.worker.errors import ConfigError, StoreError, WorkerError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE

DEMO_LIMIT_SECONDS = 60.0
DEMO_PACE_SECONDS = 0.04
RUN_PACE_SECONDS = 0.25
LOOK_SECONDS = 0.25


class Program:
    """One run of the example. finite: one round of everything, then the end; else until it is told to
    stop.
    """

    def __init__(self, settings: Settings, *, finite: bool) -> None:
        self.settings = settings
        self.finite = finite
        self.run_id = secrets.token_hex(4)
        self.events = Events()
        self.book = OrderBook()
        self.stopping = False  # written by the signal handler; a threading.Event could deadlock there
        self.workers: Workers | None = None

    def stop(self, *_: object) -> None:
        """Signal handler: the first one drains, the next ones interrupt the handlers that still run."""
        if self.stopping and self.workers is not None:
            self.workers.interrupt()
        self.stopping = True

    def run(self) -> int:
        """Everything; returns the exit code."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self.stop)
        try:
            with (
                ready_database(self.settings, say) as url,
                CloudApi(self.book, self.events) as api,
                AssistantApi(self.events, self.book.knows, api.spare) as assistant,
            ):
                if self.stopping:
                    return self._interrupted()
                return self._work(url, api, assistant)
        except BrokenPipeError:
            # nobody reads any more (`make run | head`): everything has been stopped, in order
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return EXIT_FAILED if self.finite else EXIT_OK
        except WorkerError as error:
            if self.stopping:  # Ctrl-C reached the programs of the server that was just starting, too
                return self._interrupted()
            say(f"error: {error}")
            return EXIT_FAILED

    def _interrupted(self) -> int:
        say("stopped before it began")
        return EXIT_FAILED if self.finite else EXIT_OK

    def _work(self, url: str, api: CloudApi, assistant: AssistantApi) -> int:
        def opener(purpose: str) -> Callable[[], DeadlineConnection]:
            return lambda: open_connection(self.settings, url, purpose)

        deliveries = Deliveries(self.run_id).rounds(1 if self.finite else None)
        pace = DEMO_PACE_SECONDS if self.finite else RUN_PACE_SECONDS
        feed = Feed(opener("feed"), deliveries, self.run_id, self.book, api, self.events, pace)
        upkeep, office = Upkeep(opener("upkeep")), Office(opener("office"))
        with (
            Monitor(opener("watch"), self.run_id, self.events, assistant.url) as watch,
            closing(upkeep),
            closing(office),
        ):
            if others := watch.look().workers:
                say(
                    f"error: {others} worker processes of another run are at work on this database; end that run first (a killed one is "
                    "forgotten after 20 seconds)"
                )
                return EXIT_FAILED
            self.workers = Workers(self.settings, url, api.url, api.token, assistant.url)
            # the demo has an end of its own, and nobody to look
            page = nullcontext() if self.finite else Page(self.settings, url)
            with page as shown, self.workers, feed:
                for hint in self._hints(url, shown):
                    say(hint)
                with View(feed, self.book, self.events) as view:
                    trouble = self._loop(feed, watch, view)
                    if self.finite and not trouble and not self.stopping:
                        view.note = "maintenance"
                        office.wait_until_due()
                        trouble = upkeep.run() or office.wait_for_reminders()
                    view.note = "draining"
                    feed.stop()
                    code = self.workers.stop()
                    picture = watch.look()
                    view.note = "stopped"
                    view.update(picture, last=True)
            if code != EXIT_OK:
                trouble.append(f"the workers ended with code {code}")
            if trouble and not self.stopping:
                trouble.append(f"the last lines of {self.workers.log_path}:\n{self.workers.log_tail()}")
            return self._sum_up(feed, watch, picture, assistant, trouble, upkeep, office)

    def _loop(self, feed: Feed, watch: Monitor, view: View) -> list[str]:
        """Show what happens until the end; what went wrong, [] when nothing did."""
        assert self.workers is not None
        deadline = time.monotonic() + DEMO_LIMIT_SECONDS
        view.note = "feeding; Ctrl-C drains and ends"
        pause = LOOK_SECONDS
        while not self.stopping:
            time.sleep(pause)  # a rhythm, not a wait for something
            ended = feed.finished  # before the look: what it enqueued last is in the picture
            began = time.monotonic()
            try:
                picture = watch.look()
            except StoreError as error:
                self.events.add(f"the database does not answer: {error}")
                continue
            view.update(picture)
            # after days of `run` a look takes longer: look less often
            pause = max(LOOK_SECONDS, 10 * (time.monotonic() - began))
            if feed.failure is not None:
                return [f"the feed failed: {type(feed.failure).__name__}: {feed.failure}"]
            if self.workers.exit_code is not None:
                return ["the workers ended by themselves"]
            if self.finite and ended and picture.live == 0:
                return []
            if self.finite and time.monotonic() > deadline:
                return [
                    f"not at its end after {DEMO_LIMIT_SECONDS:.0f} s; packhorse message explain tells why a message waits"
                ]
        return ["interrupted before its end"] if self.finite else []

    def _sum_up(
        self,
        feed: Feed,
        watch: Monitor,
        picture: Picture,
        assistant: AssistantApi,
        trouble: list[str],
        upkeep: Upkeep,
        office: Office,
    ) -> int:
        owed = watch.done_with_reply()
        summary = Summary(
            received=feed.received,
            enqueued=feed.enqueued,
            merged=feed.merged,
            deduplicated=feed.deduplicated,
            refused=feed.refused,
            done=picture.count("done"),
            dead=picture.count("dead"),
            cancelled=picture.count("cancelled"),
            live=picture.live,
            owed=frozenset(owed),
            answered=frozenset(self.book.answered()),
            out_of_order=list(self.book.out_of_order),
            repeated=list(self.book.repeated),
            conversations=len(self.book.conversations),
            retried=sum(attempt > 1 for attempt in owed.values()),
            snoozed=self.book.answers.get(429, 0),
            assistant=watch.assistant(assistant),
        )
        if self.finite and not trouble:
            trouble = (
                office.look_at_memory(summary.assistant.done)
                + office.check_out_a_guest()
                + office.forget(PEOPLE[-1][0])
            )
        say("")
        for line in [*summary.lines(), *office.lines, *upkeep.lines]:
            say(line)
        problems = trouble + (summary.problems() if self.finite else summary.sums())
        for problem in problems:
            say(f"PROBLEM: {problem}")
        if self.finite:
            say("everything adds up" if not problems else "it does not add up")
            say("next: make run goes on until Ctrl-C; its handlers are in examples/whatsapp/actors.py")
            return EXIT_FAILED if problems else EXIT_OK
        return EXIT_FAILED if trouble else EXIT_OK

    def _hints(self, url: str, page: Page | None) -> list[str]:
        """Where to look while it runs; the commands find the embedded server by themselves, as they find
        DATABASE_URL.

        A DATABASE_URL that was given is not repeated here: it may hold a password.
        """
        script = Path(sys.executable).with_name("packhorse")
        packhorse = str(script) if script.exists() else f"{sys.executable} -m packhorse.worker.cli.program"
        psql, shown = "psql", '"$DATABASE_URL"'
        if self.settings.database_url is None:
            psql, shown = str(programs() / "psql"), shlex.quote(url)
        in_a_browser = f"  {packhorse} web      the page, in a browser: all of what follows"
        if page is not None:
            missing = f"did not start, see {page.log_path}"
            in_a_browser = f"  the page, in a browser: {page.address or missing}"
        return [
            "where to look, from another terminal in this folder:",
            in_a_browser,
            f"  {packhorse} stats",
            f"  {packhorse} schedule list      also: maintenance list|plan|run|history, partitions status, table-care",
            "     also: workers, conversations, queue list|pause|resume, message list|explain, dead-letter groups|list|show|edit|redrive",
            f"  {psql} {shown}",
            f"     views in the schema {self.settings.db_schema}: all_messages, blocked_conversations, dead_letter_groups, message_queue_health",
            f"  tail -f {self.settings.data_dir / 'whatsapp-worker.log'}",
            "",
        ]


def main(mode: str) -> int:
    """`run` or `demo`; returns the exit code."""
    try:
        settings = load_settings()
    except ConfigError as error:
        for problem in error.problems:
            say(f"error: {problem}")
        return EXIT_USAGE
    return Program(settings, finite=mode == "demo").run()
