"""What fails, for a failure breaker (SPEC Q8d): Postgres counts for the whole fleet, and says of each failure
whether it is one like any other, or rests with no attempt spent.

Only where a message's queue or actor has one. Until Postgres has answered, the message is unacknowledged.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from packhorse.worker.amqp.deliveries import Delivery
from packhorse.worker.amqp.envelope import RelayedMessage
from packhorse.worker.amqp.ledger import Ledger
from packhorse.worker.amqp.outcomes import Ending
from packhorse.worker.amqp.resting import Resting
from packhorse.worker.attempt.finish import say_parked
from packhorse.worker.states import Ended


class CountedFailures:
    """Used by the consumer's thread. wake: a turn of that thread, from any thread."""

    def __init__(self, ledger: Ledger, resting: Resting, wake: Callable[[], None]) -> None:
        self._ledger = ledger
        self._resting = resting
        self._wake = wake
        #: Filled by the ledger.
        self._counted: deque[tuple[Delivery, RelayedMessage, Ending, tuple[str, float] | None]] = deque()

    def count(self, delivery: Delivery, message: RelayedMessage, ending: Ending) -> None:
        """Ask of a failure; counted() gives it back, soon or when Postgres is there again."""
        delivery.settling = True

        def on_counted(counted: tuple[str, float] | None) -> None:
            """In the ledger's thread."""
            self._counted.append((delivery, message, ending, counted))
            self._wake()

        self._ledger.count_failure(message, self._resting.probed(delivery), on_counted)

    def counted(self) -> Iterator[tuple[Delivery, RelayedMessage, Ending]]:
        """Those of which Postgres has answered, and how they end."""
        while self._counted:
            delivery, message, ending, counted = self._counted.popleft()
            delivery.settling = False
            what, wait_seconds = counted or (None, None)
            self._resting.failed(delivery, wait_seconds)
            if what == "parked":
                say_parked(message)
            if wait_seconds is not None:
                ending = Ending(Ended.SNOOZE, wait_seconds, message.attempt)
            yield delivery, message, ending

    def succeeded(self, delivery: Delivery) -> None:
        """A success starts a count over, and lifts what a breaker has parked when it is the probe."""
        if self._resting.watches:
            lifted, started_over = self._resting.succeeded(delivery)
            for scope in lifted:
                self._ledger.lift(scope)
            if started_over:
                self._ledger.note_success(started_over)
