"""What rests (parked scopes, SPEC W10) holds back messages that RabbitMQ has delivered, too: they are put
off, no attempt spent.

Postgres knows what rests; the ledger reads it, often while something does. After the time of a scope that is
probing, each process lets one message of it start at a time. That its service is well is said by who parked
it: a circuit breaker, a person; for a failure breaker a success here lifts it, and starts its count over.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from packhorse.worker.amqp.deliveries import Delivery
from packhorse.worker.patterns import stands_for
from packhorse.worker.store.forwarded import RestingScope

#: A message is put off for so long at most: then it sees whether somebody has lifted what it rests with.
LONGEST_SECONDS = 30.0
#: Until it is asked again whether a probe has ended.
PROBE_SECONDS = 1.0


class Resting:
    """Used by the consumer's thread, but for `read`. runs: has a pool this delivery, or is its end being
    written?
    """

    def __init__(self, runs: Callable[[Delivery], bool]) -> None:
        self._runs = runs
        #: With the time of each, on the clock of this host; replaced, never changed.
        self.scopes: list[tuple[RestingScope, float]] = []
        #: Names of scopes whose failures a breaker counts; replaced, never changed.
        self._counting: frozenset[str] = frozenset()
        self._probes: dict[str, Delivery] = {}  # by scope

    def read(self, scopes: Sequence[RestingScope], counting: frozenset[str]) -> None:
        """The ledger: what rests now."""
        now = time.monotonic()
        self.scopes = [(scope, now + scope.seconds) for scope in scopes]
        self._counting = counting

    def wait_seconds(self, delivery: Delivery) -> float:
        """How long it has to wait; 0: it may begin, and is the probe of its scopes that are probing."""
        now, wait = time.monotonic(), 0.0
        probed = []
        for scope, until in self.scopes:
            if not _covers(scope, delivery):
                continue
            if until > now:
                wait = max(wait, min(until - now, LONGEST_SECONDS))
            elif scope.probing:
                probe = self._probes.get(scope.name)
                if probe is not None and self._runs(probe):
                    wait = max(wait, PROBE_SECONDS)
                probed.append(scope.name)
        if not wait:
            self._probes.update(dict.fromkeys(probed, delivery))
        return wait

    @property
    def watches(self) -> bool:
        """Does a success mean anything?"""
        return bool(self.scopes or self._counting)

    def succeeded(self, delivery: Delivery) -> tuple[list[str], list[str]]:
        """Scopes that its success lifts, and those whose failures are counted from none again."""
        lifted = self.probed(delivery)
        for name in lifted:
            del self._probes[name]
        names = self._counting & _own_scopes(delivery)
        self._counting -= names
        return lifted, sorted(names)

    def probed(self, delivery: Delivery) -> list[str]:
        """Scopes parked by a failure breaker of which it is the probe."""
        return [
            scope.name
            for scope, _ in self.scopes
            if scope.breaker and self._probes.get(scope.name) is delivery
        ]

    def failed(self, delivery: Delivery, wait_seconds: float | None) -> None:
        """A failure breaker has counted its failure. wait_seconds: what its scopes rest for; None: none
        does.
        """
        self._counting |= _own_scopes(delivery)
        if wait_seconds is not None:
            until = time.monotonic() + wait_seconds
            self.scopes = [
                (scope, max(ends, until) if scope.breaker and _covers(scope, delivery) else ends)
                for scope, ends in self.scopes
            ]


def _own_scopes(delivery: Delivery) -> frozenset[str]:
    """Those of a failure breaker."""
    return frozenset((f"actor:{delivery.message_type}", f"queue:{delivery.queue}"))


def _covers(scope: RestingScope, delivery: Delivery) -> bool:
    """As scope_covers in migrations/functions/gates.sql."""
    return scope.queue == delivery.queue or any(
        stands_for(name, delivery.message_type) for name in scope.types
    )
