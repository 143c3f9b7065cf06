"""The pool of a relay: in place of handlers a thread that publishes, and waits for the broker's confirms.

A confirmed message is handed back as one whose handler has returned, so it is completed with the next claim.
The claim gives one message of a conversation at a time, and the next one after the completion: they reach
RabbitMQ in order by construction.

What is not confirmed may be there or not. It is published again, over the next connection, by this relay or,
when this one gives it back or dies, by another: at least once.

    RabbitMQ away, or short of disk       nothing more is claimed; what is not published is given back
    a queue refuses (nack), or is gone    the message is held and published again, later each time
    a message that RabbitMQ never takes   it becomes a dead letter `rejected`

Neither of the first two spends an attempt, and each is said once.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from packhorse.worker.amqp.connection import BrokerAway, declare_queues
from packhorse.worker.amqp.envelope import body_of, properties_of
from packhorse.worker.amqp.publisher import ConfirmedPublisher, Letter, PublishRefused
from packhorse.worker.amqp.topology import ForwardedQueue
from packhorse.worker.attempt.details import stored_text
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.config import Settings
from packhorse.worker.errors import ConfigError, UndecodableMessage
from packhorse.worker.observe.duties import Duties
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.states import Verb

logger = logging.getLogger("packhorse.relay")

#: Messages with the broker, unconfirmed, at most. A disk of the broker takes its time, not more for many.
IN_FLIGHT = 1000
#: Messages in one write; so many are encoded while the broker works on the last ones.
BURST = 100
MIN_WAIT_SECONDS, MAX_WAIT_SECONDS = 0.2, 10.0
#: A message is not published when less than this is left of its lease.
LEASE_MARGIN_SECONDS = 1.0
_PRECONDITION_FAILED = 406


class RelayPool:
    """See HandlerPool. queues: those that it may get messages of. on_finished(message): told from its thread.
    ticked: told the time, twice a second at least.
    """

    patient = True

    def __init__(
        self,
        settings: Settings,
        queues: Sequence[str],
        on_finished: Callable[[ClaimedMessage], None],
        duties: Duties,
    ) -> None:
        self.size = IN_FLIGHT
        self.ready: deque[ClaimedMessage] = deque()
        self.ticked: Callable[[float], None] = lambda now: None
        self._settings = settings
        self._queues = {name: ForwardedQueue(name, settings.amqp_partitions) for name in queues}
        self._on_finished = on_finished
        self._duties = duties
        self._publisher: ConfirmedPublisher | None = None
        self._waiting: list[tuple[float, int, Letter]] = []  # refused; when to try again
        self._numbers = itertools.count()
        self._waits: dict[str, float] = {}  # seconds, by queue that refuses
        self._suspects = 0  # so many go one by one: the broker has closed the channel over one of them
        self._scheduled = False
        self._stopping = False
        self._stop = threading.Event()
        self._said = ""
        self._thread: threading.Thread | None = None

    # -- what the fetcher and the process ask --------------------------------------------------------
    @property
    def queues(self) -> list[str]:
        return list(self._queues)

    @property
    def running(self) -> int:
        """Those that the broker has, or has refused. As many as there may be while it takes none."""
        publisher = self._publisher
        if publisher is None or not publisher.open or publisher.blocked:
            return self.size
        return len(publisher.unconfirmed) + len(self._waiting)

    def running_slots(self) -> list[Slot]:
        return []  # nothing here is interrupted

    def slot_of(self, message: ClaimedMessage) -> Slot | None:
        return None

    @property
    def unconfirmed(self) -> int:
        """How many are with the broker, or held since it has refused them."""
        publisher = self._publisher
        return len(publisher.unconfirmed) + len(self._waiting) if publisher is not None else 0

    @property
    def alive(self) -> bool:
        return self._thread is None or self._thread.is_alive() or self._stopping

    # -- life ----------------------------------------------------------------------------------------
    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="packhorse-relay", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish nothing more; what the broker has is still waited for."""
        self._stopping = True
        self._call(self._give_back_refused)

    def give_up(self) -> None:
        """What the broker has not confirmed by now is given back; somebody will publish it again."""
        publisher = self._publisher
        if publisher is not None:
            publisher.call(publisher.close)

    def wait(self, timeout_seconds: float) -> bool:
        self._stop.set()
        if self._thread is None:
            return True
        self.give_up()
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def put(self, messages: list[ClaimedMessage]) -> None:
        """Give claimed messages to the thread, in order."""
        self.ready.extend(messages)
        if not self._scheduled:
            self._scheduled = True
            self._call(self._publish)

    def _call(self, function: Callable[[], object]) -> None:
        publisher = self._publisher
        if publisher is not None:
            publisher.call(function)

    # -- the thread ----------------------------------------------------------------------------------
    def _run(self) -> None:
        wait_seconds = 0.0
        while not self._stop.wait(wait_seconds):
            self._tick()
            began = time.monotonic()
            try:
                declare_queues(self._settings, self._queues, "relay")
                self._tick()
                self._publisher = ConfirmedPublisher(
                    self._settings, self._on_open, self._on_answer, self._tick
                )
                self._publisher.run()
                break  # it was closed: nothing more is to be published
            except PublishRefused as error:
                wait_seconds = self._on_refused(error)
            except (BrokerAway, ConfigError) as error:
                self._say(error)
                lived = time.monotonic() - began > MAX_WAIT_SECONDS
                wait_seconds = min(
                    MAX_WAIT_SECONDS, MIN_WAIT_SECONDS if lived else max(MIN_WAIT_SECONDS, 2 * wait_seconds)
                )
            except Exception as error:  # whatever it is: the thread must live; what it held is kept
                logger.critical("relay_failed error_class=%s", type(error).__name__, exc_info=True)
                self._duties.failing("publish", error)
                wait_seconds = MAX_WAIT_SECONDS
            finally:
                self._take_back()

    def _tick(self) -> None:
        now = time.monotonic()
        self.ticked(now)
        publisher = self._publisher
        if publisher is not None and publisher.open:
            if publisher.blocked:
                self._duties.failing("publish", "blocked", len(self.ready))
            elif not self._waits:
                self._duties.well("publish")
            if self._waiting or self.ready:
                self._publish()

    def _say(self, error: Exception) -> None:
        self._duties.failing("publish", error, len(self.ready))
        text = str(error)
        if text != self._said:
            self._said = text
            logger.warning("relay_unavailable error=%s: messages wait in Postgres", text)

    def _on_open(self) -> None:
        if self._said:
            self._said = ""
            logger.info("relay_recovered")
        self._publish()

    def _take_back(self) -> None:
        """The connection is gone: what was not confirmed is published again, before everything else."""
        publisher, self._publisher = self._publisher, None
        left = list(publisher.unconfirmed.values()) if publisher is not None else []
        left += [letter for _, _, letter in sorted(self._waiting)]
        self._waiting.clear()
        for letter in reversed(left):
            letter.message.started_at = 0.0
            self.ready.appendleft(letter.message)
        self._scheduled = False

    # -- publishing ----------------------------------------------------------------------------------
    def _publish(self) -> None:
        """Whatever is ready, as far as there is room."""
        self._scheduled = False
        publisher = self._publisher
        if publisher is None:
            return
        while publisher.has_room and not self._stopping:
            most = 1 if self._suspects else self.size
            if len(publisher.unconfirmed) >= most:
                return
            batch = self._next(min(BURST, most - len(publisher.unconfirmed)))
            if not batch:
                return
            publisher.publish(batch)

    def _next(self, most: int) -> list[Letter]:
        now = time.monotonic()
        batch: list[Letter] = []
        while self._waiting and self._waiting[0][0] <= now and len(batch) < most:
            letter = heapq.heappop(self._waiting)[2]
            if self._may_publish(letter.message, now):
                batch.append(letter)
        while len(batch) < most:
            try:
                message = self.ready.popleft()
            except IndexError:
                break
            if self._may_publish(message, now) and (found := self._letter(message)) is not None:
                message.started_at = now
                batch.append(found)
        return batch

    def _may_publish(self, message: ClaimedMessage, now: float) -> bool:
        """Is it ours still? It is handed back when not."""
        if message.lost:
            self._hand_back(message)
            return False
        if message.lease_until - now < LEASE_MARGIN_SECONDS:
            self._hand_back(
                message, Outcome(Verb.RELEASE, "its lease was nearly over before it was published")
            )
            return False
        return True

    def _letter(self, message: ClaimedMessage) -> Letter | None:
        queue = self._queues.get(message.queue_name)
        if queue is None:  # no claim gives one
            self._hand_back(message, Outcome(Verb.RELEASE, "its queue is none of this relay's"))
            return None
        try:
            exchange, key = queue.address(message.conversation_key)
            return Letter(message, exchange, key, body_of(message), properties_of(message))
        except UndecodableMessage as error:
            self._bury(message, "undecodable", "UndecodableMessage", str(error))
            return None

    def _hand_back(self, message: ClaimedMessage, outcome: Outcome | None = None) -> None:
        message.outcome = outcome
        if message.started_at:
            message.ran_seconds = time.monotonic() - message.started_at
        message.hand_back()
        self._on_finished(message)

    def _bury(self, message: ClaimedMessage, reason: str, error_class: str, text: str) -> None:
        message.failed = True
        self._hand_back(message, Outcome(Verb.BURY, reason, error_class, stored_text(text, 1000)))

    # -- answers -------------------------------------------------------------------------------------
    def _on_answer(self, letter: Letter, confirmed: bool, returned: bool) -> None:
        message = letter.message
        queue = message.queue_name
        if confirmed and not returned:
            if self._waits and self._waits.pop(queue, None) is not None:
                logger.info("relay_accepted queue=%s", queue)
            self._hand_back(message)
        else:
            self._wait(letter, "no queue takes it" if returned else "it is full, or has too few nodes")
        publisher = self._publisher
        self._suspects = max(0, self._suspects - 1)
        if publisher is None or publisher.unconfirmed:
            return
        if returned:  # what is missing is declared before the next connection
            publisher.lose(BrokerAway(f"RabbitMQ has no queue for messages of {queue}; it is declared again"))
        elif self.ready:
            self._publish()

    def _wait(self, letter: Letter, why: str) -> None:
        queue = letter.message.queue_name
        if self._stopping:
            self._hand_back(letter.message, Outcome(Verb.RELEASE, f"RabbitMQ refuses it: {why}"))
            return
        if queue not in self._waits:
            logger.warning("relay_refused queue=%s reason=%s: held, and tried again", queue, why)
            self._waits[queue] = MIN_WAIT_SECONDS
        elif not self._waiting:  # all of the last try were refused
            self._waits[queue] = min(MAX_WAIT_SECONDS, 2 * self._waits[queue])
        self._duties.failing("publish", "refused", len(self._waiting) + 1)
        at = time.monotonic() + self._waits[queue]
        heapq.heappush(self._waiting, (at, next(self._numbers), letter))

    def _on_refused(self, error: PublishRefused) -> float:
        """The channel was closed over something that was published; seconds until the next connection."""
        publisher = self._publisher
        letters = list(publisher.unconfirmed.values()) if publisher is not None else []
        if error.code != _PRECONDITION_FAILED:  # an exchange is gone, say, or a right: declaring says more
            self._say(error)
            return MIN_WAIT_SECONDS * 5
        if len(letters) == 1 and publisher is not None:
            publisher.unconfirmed.clear()
            self._suspects = max(0, self._suspects - 1)
            message = letters[0].message
            logger.error("relay_message_refused message_id=%s error=%s", message.id, error)
            self._bury(message, "rejected", "RefusedByBroker", f"RabbitMQ never takes it: {error}")
            return 0.0
        self._suspects = len(letters)  # it does not say which one it was
        return 0.0

    def _give_back_refused(self) -> None:
        while self._waiting:
            message = heapq.heappop(self._waiting)[2].message
            self._hand_back(message, Outcome(Verb.RELEASE, "the relay stops"))
