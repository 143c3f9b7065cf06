"""What this process holds of RabbitMQ, from the delivery to what became of it.

A delivery is acknowledged when what became of it is safe: its handler is done; the message for its next
attempt is confirmed; its dead letter is committed. A message of a conversation stays where it is between
its attempts, and the later ones of its conversation behind it: that is the order. Others wait on the
broker.

outcomes.py decides, unacknowledged.py answers to RabbitMQ, ledger.py writes to Postgres, places.py gives to
the pools.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

from packhorse.worker.amqp.acks import Acks
from packhorse.worker.amqp.deliveries import Delivery, DoneIds
from packhorse.worker.amqp.envelope import RelayedMessage
from packhorse.worker.amqp.failures import CountedFailures
from packhorse.worker.amqp.ledger import Ledger
from packhorse.worker.amqp.loop import BrokerLoop
from packhorse.worker.amqp.outcomes import Ending, QueuePolicy, attempts_allowed, ending_of, with_entry
from packhorse.worker.amqp.places import Places
from packhorse.worker.amqp.resting import Resting
from packhorse.worker.amqp.topology import next_delay
from packhorse.worker.amqp.unacknowledged import Unacknowledged
from packhorse.worker.attempt.messages import ClaimedMessage, Outcome
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.errors import LeaseInterrupt, UndecodableMessage
from packhorse.worker.runtime.hooks import Hooks
from packhorse.worker.runtime.in_flight import InFlight
from packhorse.worker.runtime.slots import Slot
from packhorse.worker.states import Ended, Verb
from packhorse.worker.store.forwarded import ForwardedNote

logger = logging.getLogger("packhorse.amqp")

UNKNOWN_TYPE_SECONDS = 30.0
#: With something in flight: finished messages are collected at least this often.
LINGER_SECONDS = 0.005
#: Of a message that comes again Postgres is asked once more after this, when it does not say why: RabbitMQ
#: gives what a dead process had to others before its parent has noted what ran.
NOTE_SECONDS = 1.0
#: Low bits of a lease token: the number of the attempt, for the parent (worker/fleet/child.py).
ATTEMPT_BITS = 20


class Custody:
    """Used by the consumer's thread, but for what says so. wake: a turn of that thread, from any thread.
    retries_of: what a message and its actor say of retries. has_breaker: has its actor a failure breaker?
    policies: by queue; replaced by the ledger.
    """

    def __init__(
        self,
        worker_id: object,
        places: Places,
        hooks: Hooks,
        in_flight: InFlight,
        ledger: Ledger,
        wake: Callable[[], None],
        retries_of: Callable[[ClaimedMessage], dict[str, Any]],
        has_breaker: Callable[[ClaimedMessage], bool],
        unknown_type_seconds: float,
    ) -> None:
        self._worker_id = worker_id
        self.places = places
        self._hooks = hooks
        self.in_flight = in_flight
        self._ledger = ledger
        self._wake = wake
        self._retries_of = retries_of
        self._has_breaker = has_breaker
        self._unknown_type_seconds = unknown_type_seconds
        self.policies: dict[str, QueuePolicy] = {}
        self.resting = Resting(self._runs)
        self._failures = CountedFailures(ledger, self.resting, wake)
        self._unacknowledged = Unacknowledged(self._is_first, self._begin, self._soon)
        self.finished: deque[ClaimedMessage] = deque()  # filled by the pools
        self._noted: deque[tuple[Delivery, ForwardedNote]] = deque()  # filled by the ledger
        self._buried: deque[tuple[Delivery, RelayedMessage | None]] = deque()  # filled by the ledger
        self._deliveries: dict[int, Delivery] = {}  # by lease token, of the messages that the pools have
        self._done_ids = DoneIds()
        self._tokens = count(1)
        self._unknown: set[str] = set()  # types of which it was said
        self._is_soon = self._lingers = False
        #: Of handlers that are done, smoothed.
        self.average_seconds = 1.0

    # -- connections ---------------------------------------------------------------------------------
    def opened(self, loop: BrokerLoop, acks: Acks) -> None:
        self._unacknowledged.opened(loop, acks)
        self._is_soon = self._lingers = False

    def lost(self, slot_of: Callable[[ClaimedMessage], Slot | None]) -> None:
        """The connection is gone, whoever closed it: others get what was here. What has not begun is
        dropped, what runs is interrupted. slot_of: where a message runs.
        """
        for message in self._take_back():
            self.in_flight.ended(message, Ended.RELEASED)
        for delivery in self._deliveries.values():
            running = delivery.message
            if running is not None:
                running.lost = True
                slot = slot_of(running)
                if slot is not None:
                    slot.interrupt(running, LeaseInterrupt)
        self._unacknowledged.lost({delivery.line for delivery in self._deliveries.values()})

    def _take_back(self) -> list[ClaimedMessage]:
        taken = self.places.take_back()
        for message in taken:
            del self._deliveries[message.lease_token]
        return taken

    def give_back(self) -> None:
        """To others what has not begun, but for messages of conversations: their partition is still ours,
        and those who come after them must not begin elsewhere.
        """
        for message in self._take_back():
            self.in_flight.ended(message, Ended.RELEASED)
        self._unacknowledged.give_back_all({id(delivery) for delivery in self._deliveries.values()})

    @property
    def running(self) -> int:
        """Messages that a pool still has."""
        return len(self._deliveries)

    @property
    def idle(self) -> bool:
        """Nothing runs, and nothing is being written."""
        return not (self.places.given or self.finished or self._unacknowledged.settling)

    def arrived(self, delivery: Delivery, again: bool) -> None:
        is_first = self._unacknowledged.arrived(delivery)
        message_id = delivery.id
        if again and message_id is not None:
            delivery.awaits_note = True
            self._ask(delivery)
        if is_first:
            self._is_first(delivery)
        self._soon()

    def _ask(self, delivery: Delivery) -> None:
        if delivery.id is not None and self._unacknowledged.holds(delivery):
            self._ledger.ask(delivery.id, partial(self._on_note, delivery))

    def _on_note(self, delivery: Delivery, note: ForwardedNote) -> None:
        """In the ledger's thread."""
        self._noted.append((delivery, note))
        self._wake()

    def _is_first(self, delivery: Delivery) -> None:
        delivery.is_first = True
        if not delivery.awaits_note:
            self._begin(delivery)

    def _runs(self, delivery: Delivery) -> bool:
        """Has a pool its message, or is it to get it, or is its end being written?"""
        message = delivery.message
        if message is not None and self._deliveries.get(message.lease_token) is delivery:
            return True
        return delivery.settling and self._unacknowledged.holds(delivery)

    def _begin(self, delivery: Delivery) -> None:
        """The first of its line: run it, or let it wait, or end it without running it."""
        if not self._unacknowledged.holds(delivery) or self.places.closed:
            return
        if delivery.id in self._done_ids or (delivery.note is not None and delivery.note.is_over):
            logger.info("message_repeated message_id=%s queue=%s: it is done", delivery.id, delivery.queue)
            self._unacknowledged.settle(delivery)
            return
        wait = delivery.wait_seconds or self.resting.wait_seconds(delivery)
        if wait > 0 and not delivery.gave_up:
            self._unacknowledged.postpone(delivery, wait)
            return
        now = time.monotonic()
        try:
            message = delivery.attempt(now)
        except UndecodableMessage as error:
            self._bury_stranger(delivery, str(error))
            return
        message.lease_token = next(self._tokens) << ATTEMPT_BITS | min(
            message.attempt, (1 << ATTEMPT_BITS) - 1
        )
        self.in_flight.add(message)
        if not self._ends_unbegun(delivery, message):
            self._deliveries[message.lease_token] = delivery

    def _ends_unbegun(self, delivery: Delivery, message: RelayedMessage) -> bool:
        """Whether it is not to run: too late, too many crashes or attempts, a type that nobody here knows."""
        policy = self._policy(delivery)
        if message.expires_at is not None and message.expires_at <= time.time():
            self._end(delivery, message, Ended.CANCELLED)
        elif delivery.gave_up or message.crashes >= policy.crash_limit:
            text = f"the process died {message.crashes} times while this message ran"
            if delivery.gave_up:
                text = "RabbitMQ has delivered it again and again, and no worker has said what became of it"
            self._give_up(delivery, message, "quarantined", "WorkerLost", text)
        elif delivery.note is not None and message.attempt > attempts_allowed(
            message, self._retries_of(message).get("max_attempts"), policy
        ):
            text = "its last attempt ignored its time limit; its process was replaced"
            self._give_up(delivery, message, "failed", "TimeLimitExceeded", text)
        elif self.places.put(message):
            return False
        elif message.age_seconds > self._unknown_type_seconds:
            text = f"no worker has registered the type {message.message_type!r}"
            self._give_up(delivery, message, "unknown_type", None, text)
        else:
            self._postpone_unknown(delivery, message)
        return True

    def _postpone_unknown(self, delivery: Delivery, message: RelayedMessage) -> None:
        """During a deploy another worker may know it."""
        if message.message_type not in self._unknown:
            self._unknown.add(message.message_type)
            logger.warning(
                "amqp_unknown_type message_type=%s queue=%s: no actor here; its messages wait",
                message.message_type,
                delivery.queue,
            )
        self.in_flight.ended(message, Ended.RELEASED)
        self._unacknowledged.postpone(delivery, UNKNOWN_TYPE_SECONDS)

    def _give_up(
        self, delivery: Delivery, message: RelayedMessage, reason: str, error_class: str | None, text: str
    ) -> None:
        said = self._retries_of(message)
        message.outcome = Outcome(
            Verb.BURY,
            reason,
            error_class,
            text,
            max_attempts=said.get("max_attempts"),
            on_exhausted=said.get("on_exhausted"),
        )
        message.failed = True
        message.move(AttemptStage.RETURNED)
        self._bury(delivery, message, reason)

    def _policy(self, delivery: Delivery) -> QueuePolicy:
        return self.policies.get(delivery.queue) or QueuePolicy()

    # -- what ends -----------------------------------------------------------------------------------
    def collect(self) -> None:
        """What the ledger and the pools have left here."""
        while self._noted:
            delivery, note = self._noted.popleft()
            if delivery.is_early(note):
                self._unacknowledged.call_later(NOTE_SECONDS, partial(self._ask, delivery))
                continue
            delivery.note, delivery.awaits_note = note, False
            if delivery.is_first:
                self._begin(delivery)
        for delivery, message, ending in self._failures.counted():
            if self._unacknowledged.holds(delivery):
                self._becomes(delivery, message, ending)
            else:  # its connection was lost meanwhile: others have it
                self.in_flight.ended(message, Ended.LOST)
                self._hooks.after_ending(message)
        while self._buried:
            self._is_buried(*self._buried.popleft())
        self._collect()

    def _soon(self) -> None:
        """A turn's second half, once for all that arrives together."""
        if not self._is_soon:
            self._is_soon = True
            self._unacknowledged.call_later(0, self.follow)

    def follow(self) -> None:
        """Give to the pools, acknowledge."""
        self._is_soon = False
        self.places.feed()
        self._unacknowledged.flush()
        if not self._lingers and self.places.given:
            self._lingers = True
            self._unacknowledged.call_later(LINGER_SECONDS, self._linger)

    def _linger(self) -> None:
        self._lingers = False
        if self.finished:
            self.collect()
        self.follow()

    def _collect(self) -> None:
        done: list[ClaimedMessage] = []
        deliveries = []
        while self.finished:
            message = self.finished.popleft()
            self.places.finished(message)
            delivery = self._deliveries.pop(message.lease_token)
            if not self._unacknowledged.holds(delivery):
                self._ended_elsewhere(delivery, message)
            elif message.outcome is None and not message.failed:
                self.average_seconds += 0.05 * (message.ran_seconds - self.average_seconds)
                done.append(message)
                deliveries.append(delivery)
                self._failures.succeeded(delivery)
            else:
                self._ended(delivery, message)
        if self._hooks.before_ack:
            for message in done:
                self._hooks.before_ending(message)
        for delivery in deliveries:
            self._done_ids.add(delivery.id)
            self._unacknowledged.settle(delivery)
        if done:
            self.in_flight.done(done)
        if self._hooks.after_ack:
            for message in done:
                self._hooks.after_ending(message)

    def _ended_elsewhere(self, delivery: Delivery, message: ClaimedMessage) -> None:
        """Its connection was lost: somebody else has it, or will. What its handler did stays done."""
        if message.started_at and message.outcome is None and not message.failed:
            self._done_ids.add(delivery.id)
            self._ledger.note_done([message.id])
        self.in_flight.ended(message, Ended.LOST)
        self._unacknowledged.leave(delivery)

    def _ended(self, delivery: Delivery, message: ClaimedMessage) -> None:
        policy = self._policy(delivery)
        ending = ending_of(message, policy)
        self._hooks.before_ending(message)
        if ending.failed and (policy.breaker or self._has_breaker(message)):
            self._failures.count(delivery, _relayed(message), ending)
        else:
            self._becomes(delivery, _relayed(message), ending)

    def _becomes(self, delivery: Delivery, message: RelayedMessage, ending: Ending) -> None:
        if ending.ended is Ended.DEAD:
            message.failed = True
            self._bury(delivery, message, ending.reason)
        elif ending.wait_seconds is not None:
            self._again(delivery, message, ending)
        else:
            self._end(delivery, message, ending.ended)

    def _end(self, delivery: Delivery, message: RelayedMessage, ended: Ended) -> None:
        """Done with it here: cancelled, or handed back."""
        self.in_flight.ended(message, ended)
        self._hooks.after_ending(message)
        if ended is not Ended.RELEASED:
            self._done_ids.add(delivery.id)
            self._unacknowledged.settle(delivery)
        else:
            self._unacknowledged.give_back(delivery)

    def _again(self, delivery: Delivery, message: RelayedMessage, ending: Ending) -> None:
        """Another attempt."""
        wait = ending.wait_seconds or 0.0
        at = datetime.now(UTC).isoformat()
        history = with_entry(delivery.history, message, ending.ended, at, self._worker_id)
        delivery.renew(message, ending.attempt, wait, history)
        message.failed = False
        self.in_flight.ended(message, ending.ended)
        if message.outcome is not None and message.outcome.verb is Verb.PARK:
            self._ledger.park(message, wait, message.outcome)
        if ending.ended is Ended.RETRY:
            self._hooks.delayed(message)
        self._hooks.after_ending(message)
        message._exception = None
        if delivery.keyed:
            self._ledger.note_attempt(message.id, ending.attempt - 1, wait, history)
            self._unacknowledged.postpone(delivery, wait)
        elif next_delay(wait) is None:
            self._unacknowledged.send(delivery, ("", delivery.queue))
        else:
            self._unacknowledged.postpone(delivery, wait)

    def _bury(self, delivery: Delivery, message: RelayedMessage, reason: str) -> None:
        delivery.settling = True
        self._ledger.bury(message, reason, delivery.history, lambda _: self._on_buried(delivery, message))

    def _bury_stranger(self, delivery: Delivery, text: str) -> None:
        delivery.settling = True
        self._ledger.bury_stranger(
            delivery.queue,
            delivery.body,
            delivery.properties,
            text,
            lambda _: self._on_buried(delivery, None),
        )

    def _on_buried(self, delivery: Delivery, message: RelayedMessage | None) -> None:
        """In the ledger's thread."""
        self._buried.append((delivery, message))
        self._wake()

    def _is_buried(self, delivery: Delivery, message: RelayedMessage | None) -> None:
        if message is not None:
            self.in_flight.ended(message, Ended.DEAD)
            self._hooks.after_ending(message)
            message._exception = None
        if self._unacknowledged.holds(delivery):
            self._unacknowledged.settle(delivery)


def _relayed(message: ClaimedMessage) -> RelayedMessage:
    assert isinstance(message, RelayedMessage)
    return message
