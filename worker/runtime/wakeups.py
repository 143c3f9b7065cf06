"""When producers are to send a NOTIFY, and when this process looks by itself instead (SPEC Q10).

A commit with a NOTIFY holds a lock of the whole database cluster, so producers that notify wait for each
other. For a few messages a second that costs nothing, and a worker that sleeps and is told is the cheapest
there is. From HOT_COUNT notifications in HOT_SECONDS on, one worker of the fleet watches the queue: it looks
every few milliseconds, producers send nothing, and the other workers sleep. It wakes them when more comes
than it can start, and when it has no thread left for some time it leaves the queue; then producers notify
again. A worker that is lost is covered by ATTEND_SECONDS.

All sleepers hear of each message, and one is enough: ring.py says whose turn it is. Who has no room passes
the word on, PASSES times; a claim that took all it asked for may have left more, so whoever still has a
backlog a moment later calls others. In a fleet everything spreads like this, from one to few to all.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import inf
from uuid import UUID

from packhorse.worker.attempt.heartbeat import stretched
from packhorse.worker.db.pool import Link
from packhorse.worker.runtime.ring import ALL, FEW, Word, ours, some_number
from packhorse.worker.store import wakes as store

# how long a request for NOTIFY stands: NOTIFY ends that long after the last listener, at most
WAKE_SECONDS = 10.0
# asked again after this: the database lets a request stand that has half of WAKE_SECONDS left
RENEW_SECONDS = 4.0
HOT_COUNT = 20
HOT_SECONDS = 0.1  # so many notifications in this time: somebody should watch
ATTEND_SECONDS = 1.0  # producers trust a worker that watches for so long
KEEP_SECONDS = 0.4  # it says so again after this time
LOOK_SECONDS = 0.001  # between two looks, at least; twice as long after each that finds nothing
# reached at 4,000 messages a second: the more come, the more a look may take at once
LOOK_MOST_SECONDS = 0.010
QUIET_SECONDS = 0.06  # nothing came for so long: sleep
FULL_SECONDS = 0.05  # no thread was free for so long: leave the queues to others
PRESS_SECONDS = 0.005  # a sleeper is woken at once, others after 5, 10, 20, 40 ... ms
PRESS_MOST_SECONDS = 1.0
PASSES = 3  # so often a word is passed on by those who have no room, the last time to FEW at once
# a backlog stays for so long: another one is called, and again after 2, 4, 8 ... times as long
CALL_SECONDS, FAST_CALL_SECONDS = 0.025, 0.1


class Wakeups:
    """Used by the fetcher's thread, but for `hear`.

    worker_id: ours. types: what this worker runs; forward: where it publishes instead. listening: does a
    NOTIFY reach us now?
    """

    def __init__(
        self,
        link: Link,
        worker_id: UUID,
        queues: list[str],
        types: list[str],
        listening: Callable[[], bool],
        forward: str | None = None,
    ) -> None:
        self._link = link
        self._worker_id = worker_id
        self._queues = queues
        self._types = types
        self._forward = forward
        self.listening = listening
        self.peers: Callable[[], int] = lambda: 1  # processes that could take our messages, we among them
        self.before: Callable[[], UUID | None] = lambda: None  # the one before us on the ring
        #: Words that were for us; appended by the listener's thread.
        self._told: deque[Word] = deque(maxlen=100)
        self.call_at = inf  # when others are to be called, unless our backlog has gone (monotonic)
        self._called = 0  # times, for this backlog
        self._called_at = inf
        #: Tells sleepers by Redis what the statement before has notified; nothing where they LISTEN.
        self.tell: Callable[[list[str]], None] = lambda queues: None
        self._asleep_at = -inf  # when we asked for NOTIFY (monotonic)
        # notifications per queue since _heard_at; written by the listener's thread
        self._heard: dict[str, int] = {}
        self._heard_at = -inf
        self._hot: set[str] = set()
        self.attending: list[str] = []  # the queues that we watch
        self._keep_at = inf
        self._found_at = 0.0  # when a look last found a message
        self._empty = 0  # looks in a row that found nothing
        self._full_at = inf  # since when there has been no free thread
        self._pressed_gap = 0.0
        self._press_at = 0.0

    # -- asking for NOTIFY -------------------------------------------------------------------------
    def asleep(self) -> bool:
        """Does our request stand?"""
        return time.monotonic() < self._asleep_at + RENEW_SECONDS * self._stretch

    def announce_sleep(self) -> None:
        """Producers shall notify from now on; look once more afterwards: one may have committed before it saw
        this.
        """
        now = time.monotonic()
        with self._link.connection() as connection:
            store.announce_sleep(connection, self._queues, WAKE_SECONDS * self._stretch)
        self._asleep_at = now

    @property
    def next_turn(self) -> float:
        """When something is to be said again (monotonic): that we sleep, or that others are wanted."""
        if self.attending:
            return min(self._full_at + FULL_SECONDS, max(self._full_at, self._press_at))
        renew_at = self._asleep_at + RENEW_SECONDS * self._stretch if self._asleep_at > -inf else inf
        return min(self.call_at, renew_at)

    @property
    def _stretch(self) -> float:
        """Any of us may say that producers shall notify."""
        return stretched(self.peers())

    def renew(self) -> bool:
        """Ask again, when it is time and somebody would hear it. True: the request had lapsed, so look once
        more.
        """
        now = time.monotonic()
        if self.attending or self._asleep_at == -inf or self.asleep():
            return False
        lapsed = now >= self._asleep_at + WAKE_SECONDS * self._stretch / 2
        self._asleep_at = -inf
        if not self.listening():
            return False
        self.announce_sleep()
        return lapsed

    # -- hearing and calling others ------------------------------------------------------------------
    def hear(self, word: Word) -> bool:
        """Is it for us? Called by the listener's thread."""
        if not word.all:
            self._count(word.queue)
        if not self._ours(word):
            return False
        if word.number is not None:
            self._told.append(word)
        return True

    def answer(self, *, room: bool) -> None:
        """We look for what we were told of, or pass it on: no room."""
        passed: dict[str, int] = {}
        while self._told:
            word = self._told.popleft()
            passed[word.queue] = max(word.passed + 1, passed.get(word.queue, 0))
        if room or self.peers() <= FEW:
            return
        for queue, times in passed.items():
            if times <= PASSES:
                self._call([queue], 1 if times < PASSES else FEW, times)

    def spread(self, *, backlog: bool, fast: bool) -> None:
        """Once a turn while we do not watch: a backlog that does not go is for others, too.

        fast: its handlers are, so a few of us may take all of it sooner than many would.
        """
        if not backlog or self.peers() <= FEW:
            self.call_at, self._called, self._called_at = inf, 0, inf
            return
        now = time.monotonic()
        self._called_at = min(self._called_at, now)
        first = FAST_CALL_SECONDS if fast else CALL_SECONDS
        gap = min(PRESS_MOST_SECONDS, first * 2.0**self._called)
        self.call_at = self._called_at + gap
        if now >= self.call_at:
            self._call(self._queues, 1, PASSES)
            self._called, self._called_at = min(self._called + 1, 10), now
            self.call_at = now + gap

    def _ours(self, word: Word) -> bool:
        return ours(word, self._worker_id, self.before(), self.peers())

    def _call(self, queues: list[str], count: int, passed: int) -> None:
        """Wake so many, or a few less; not us."""
        numbers = [some_number() for _ in range(4 * count)]
        others = [number for number in numbers if not self._ours(Word("", number=number))] or numbers
        with self._link.connection() as connection:
            words = store.call_workers(connection, queues, others[:count], passed)
        self.tell(words)

    # -- watching ----------------------------------------------------------------------------------
    def _count(self, queue: str) -> None:
        now = time.monotonic()
        if now - self._heard_at > HOT_SECONDS:
            self._heard, self._heard_at = {}, now
        count = self._heard[queue] = self._heard.get(queue, 0) + 1
        if count == HOT_COUNT:
            self._hot.add(queue)

    def attend(self, *, backlog: bool) -> None:
        """Watch what is hot, or everything while there is a backlog; goes on with it in time."""
        now = time.monotonic()
        if now >= self._keep_at:
            self._keep_at = now + KEEP_SECONDS
            if self.attending:
                with self._link.connection() as connection:
                    lost = store.keep_attending(
                        connection, self.attending, self._types, ATTEND_SECONDS, self._forward
                    )
                self.attending = [queue for queue in self.attending if queue not in lost]
                self.tell([queue + ALL for queue in lost])
        if now - self._heard_at > HOT_SECONDS * 2:
            self._hot.clear()  # it was the turn of others to look
        hot = (
            self._queues
            if backlog and not self.attending
            else [queue for queue in self._hot.copy() if queue not in self.attending]
        )
        self._hot.clear()
        if not hot or (backlog and now < self._press_at):
            return
        if backlog:
            self._press_at = now + PRESS_MOST_SECONDS  # by others, it may be
        with self._link.connection() as connection:
            got = store.attend_queues(connection, hot, self._types, ATTEND_SECONDS, self._forward)
        if got:
            if not self.attending:
                self._keep_at = now + KEEP_SECONDS
                self._found_at, self._empty, self._press_at = now, 0, 0.0
                self._pressed_gap = 0.0
                self.call_at, self._called, self._called_at = inf, 0, inf
            self.attending = [*self.attending, *got]

    def looked(self, claimed: int, rate: float, *, backlog: bool) -> float:
        """While we watch: a look took so many. Seconds until the next one; 0.0 and no longer watching: once
        more now.

        rate: messages per second that end here.
        """
        now = time.monotonic()
        if claimed:
            self._found_at, self._empty = now, 0
            if not backlog:
                self._pressed_gap = 0.0
        elif now - self._found_at > QUIET_SECONDS:
            self.leave(wake=False)
            return 0.0
        else:
            self._empty += 1
        return min(LOOK_MOST_SECONDS, max(LOOK_SECONDS, rate * LOOK_MOST_SECONDS / 4000)) * 2.0**self._empty

    def pressed(self) -> None:
        """While we watch: there is more than we can start. Wake another one, now and then."""
        now = time.monotonic()
        if now < self._press_at:
            return
        self._call(self.attending, 1, PASSES)
        self._pressed_gap = min(PRESS_MOST_SECONDS, self._pressed_gap * 2 or PRESS_SECONDS)
        self._press_at = now + self._pressed_gap

    def full(self, *, fast: bool) -> None:
        """While we watch: no thread is free. Another one is woken, and after FULL_SECONDS we leave.

        fast: threads are free again so soon that we go on alone until there is a backlog.
        """
        if fast:
            self._full_at = inf
            return
        now = time.monotonic()
        self._full_at = min(self._full_at, now)
        if now >= self._full_at + FULL_SECONDS:
            self.leave(wake=True)
        else:
            self.pressed()

    def free(self) -> None:
        """A thread is free."""
        self._full_at = inf

    def leave(self, *, wake: bool) -> None:
        """Watch no longer. Look once more afterwards, or let others: wake."""
        if self.attending:
            with self._link.connection() as connection:
                store.hand_over_queues(connection, self.attending, wake=False, leave=True)
            if wake:
                self._call(self.attending, FEW, PASSES)
        self.attending, self._keep_at, self._full_at = [], inf, inf
