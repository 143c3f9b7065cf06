"""A random walk of three sessions over a queue whose keys take turns, while keys come and go: what a claim
takes may start, and nobody who may start waits longer than two rounds (SPEC P1, P4, Q8, Q8c).

The book of the walk says who waits, what runs and which tokens are left; the SQL is asked only through its
API. The clock stands between two steps. The seed is in the test's name and in every failure.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest

from tests.property.conftest import FrozenSessions
from tests.sql.client import Lease
from tests.sql.conversations import violations
from tests.sql.mutations import break_function

pytestmark = pytest.mark.slow

SESSIONS = 3
MOST_CLAIMED = 3
#: A session may know the keys of the ring from so long ago; of messages without a key it looks for more once
#: a second.
OLD_KEYS, OLD_KEYLESS = 0.25, 2.0
#: Tenants and keys that always have much: few, and so many that a session keeps a list of the ring.
BIG = [("a", None), ("b", "k1"), ("c", "k2"), ("d", "k3"), (None, "k4"), (None, "k5"), (None, None)]
MANY_BIG = [
    *BIG,
    *((f"e{number}", None) for number in range(8)),
    *((None, f"l{number}") for number in range(8)),
]
Turn = tuple[str, str] | None  # of a tenant, of a concurrency key, of all that have neither


@dataclass
class Waiting:
    """A message that lives, as the walk believes it to be; due: seconds of the clock."""

    tenant: str | None
    key: str | None
    talk: str | None
    due: float
    lease: Lease | None = None

    @property
    def turn(self) -> Turn:
        if self.tenant is not None:
            return "tenant", self.tenant
        return None if self.key is None else ("key", self.key)


class Limits:
    """What may run and start with each concurrency key; None: any number."""

    def __init__(self, at_once: int | None = None, a_second: int | None = None) -> None:
        self.at_once = at_once
        self.a_second = a_second
        self.running: Counter[str] = Counter()
        self._tokens: dict[str, tuple[float, float]] = {}  # what was left, and when

    def room(self, key: str | None, now: float) -> float:
        """How many more may start."""
        if key is None:
            return 1e9
        rooms = [1e9]
        if self.at_once is not None:
            rooms.append(self.at_once - self.running[key])
        if self.a_second is not None:
            left, at = self._tokens.get(key, (self.a_second, now))
            rooms.append(min(self.a_second, left + (now - at) * self.a_second) + 1e-6)
        return min(rooms)

    def start(self, key: str | None, now: float) -> None:
        if key is None:
            return
        if self.a_second is not None:
            left, at = self._tokens.get(key, (self.a_second, now))
            self._tokens[key] = min(self.a_second, left + (now - at) * self.a_second) - 1, now
        self.running[key] += 1


class Walk:
    """One walk: `step()` does one random thing and checks everything."""

    def __init__(self, sessions: FrozenSessions, seed: int, limits: Limits, **settings: Any) -> None:
        self.sessions = sessions
        self.clients = [sessions.make() for _ in range(SESSIONS)]
        self.other = self.clients[0]
        self.other.rows("select declare_queue('q')")
        self.other.set_queue(**settings)
        self.chance = random.Random(seed)
        self.big = MANY_BIG if seed % 2 else BIG
        self.limits = limits
        self.now = 0.0
        self.live: dict[int, Waiting] = {}
        self.ended: dict[int, str] = {}
        self.names = 0
        self.since: dict[Turn, float] = {}  # when it could have had a turn for the first time
        self.passed: dict[Turn, list[int]] = defaultdict(
            lambda: [0] * SESSIONS
        )  # starts of others since then
        self.beside: dict[Turn, int] = {}  # the most turns that there were meanwhile

    # what happens
    def step(self) -> None:
        act = self.chance.choices(
            [self.come, self.pile_up, self.claim, self.finish, self.cancel, self.wait], [2, 3, 16, 8, 1, 5]
        )[0]
        act()
        self.see_who_waits()

    def come(self) -> None:
        """Somebody new, for a few messages; he is never seen again."""
        self.names += 1
        name = f"{self.chance.choice('aaceghz')}{self.names}"
        tenant, key = self.chance.choice(
            [(name, None), (name, "k1"), (None, name), (None, None), (name, name)]
        )
        for _ in range(self.chance.randint(1, 3)):
            self.send(tenant, key, self.chance.choice([None, None, f"talk of {name}"]))

    def pile_up(self) -> None:
        """Those who always have much have so again."""
        waiting = Counter((m.tenant, m.key) for m in self.live.values() if m.lease is None)
        for tenant, key in self.big:
            talk = self.chance.choice([None, None, None, f"talk {self.names}"])
            for _ in range(5 if waiting[tenant, key] < 5 else 0):
                self.send(tenant, key, talk)

    def send(self, tenant: str | None, key: str | None, talk: str | None) -> None:
        delay = self.chance.choice([0, 0, 0, 0, 0.03, 0.4])
        ident = self.chance.choice(self.clients).enqueue(
            fairness_key=tenant,
            concurrency_key=key,
            conversation_key=talk,
            priority=self.chance.choice([3, 5, 5, 5, 8]),
            delay=f"{delay} seconds",
        )
        assert ident not in self.live and ident not in self.ended
        self.live[ident] = Waiting(tenant, key, talk, self.now + delay)

    def wait(self) -> None:
        self.pass_time(self.chance.choice([0.01, 0.05, 0.1, 0.3]))

    def pass_time(self, seconds: float) -> None:
        self.now = round(self.now + seconds, 6)
        self.sessions.later(seconds)

    def claim(self) -> None:
        place = self.chance.randrange(SESSIONS)
        self.claim_by(place, self.chance.choice([1, 1, 1, MOST_CLAIMED]))

    def claim_by(self, place: int, limit: int) -> int:
        """What it took may start; whoever else might have started has waited for so many more."""
        could = {message.turn for ident, message in self.live.items() if self.may_start(ident)}
        leases = self.clients[place].claim(limit, holder=UUID(int=place + 1))
        for lease in leases:
            message = self.live.get(lease.id)
            assert message is not None, f"{lease.id} has ended, or was never there"
            assert self.may_start(lease.id), f"{lease} may not start: {message}"
            message.lease = lease
            self.limits.start(message.key, self.now)
        took = {self.live[lease.id].turn for lease in leases}
        for turn in could - took:
            if self.now - self.since.get(turn, self.now) > (OLD_KEYLESS if turn is None else OLD_KEYS):
                self.passed[turn][place] += len(leases)
                self.check_wait(turn, self.passed[turn][place])
        for turn in took:
            self.forget(turn)
        return len(leases)

    def check_wait(self, turn: Turn, passed: int) -> None:
        """Each session gives it a turn within two rounds of its own, and the rest of a claim."""
        most = 2 * self.beside.get(turn, 1) + MOST_CLAIMED
        assert passed <= most, f"{turn} waits, and {passed} of others have started in one session"

    def finish(self) -> None:
        """A session ends some of what it runs, and hands some back."""
        for ident in [ident for ident, message in self.live.items() if message.lease is not None]:
            if self.chance.random() < 0.5:
                self.end(ident, self.chance.random())

    def end(self, ident: int, fate: float) -> None:
        message = self.live[ident]
        lease = message.lease
        assert lease is not None
        client = self.chance.choice(self.clients)
        if fate < 0.1:
            assert client.value("select release_message(%s, %s)", ident, lease.token)
        elif fate < 0.2:
            assert client.value("select snooze_message(%s, %s, interval '40 ms')", ident, lease.token)
            message.due = self.now + 0.04
        else:
            assert client.complete(lease) == [ident]
            self.ended[ident] = "done"
            del self.live[ident]
        message.lease = None
        if message.key is not None:
            self.limits.running[message.key] -= 1

    def cancel(self) -> None:
        waiting = [ident for ident, message in self.live.items() if message.lease is None]
        for ident in self.chance.sample(waiting, min(3, len(waiting))):
            assert self.other.value("select cancel_message(%s)", ident) == "cancelled"
            self.ended[ident] = "cancelled"
            del self.live[ident]

    # who may start
    def may_start(self, ident: int) -> bool:
        message = self.live[ident]
        return (
            message.lease is None
            and message.due <= self.now + 1e-9
            and self.limits.room(message.key, self.now) >= 1
            and (message.talk is None or ident == self.first_of(message.talk))
        )

    def first_of(self, talk: str) -> int:
        """What runs of a conversation, else its oldest."""
        of_it = [
            (message.lease is None, ident) for ident, message in self.live.items() if message.talk == talk
        ]
        return min(of_it)[1]

    def see_who_waits(self) -> None:
        turns = {message.turn for ident, message in self.live.items() if self.may_start(ident)}
        for turn in [turn for turn in self.since if turn not in turns]:
            self.forget(turn)
        for turn in turns:
            self.since.setdefault(turn, self.now)
            self.beside[turn] = max(self.beside.get(turn, 0), len(turns))

    def forget(self, turn: Turn) -> None:
        """It waits for nothing, or has had a turn."""
        for book in (self.since, self.passed, self.beside):
            book.pop(turn, None)  # type: ignore[attr-defined]

    # the end
    def settle(self) -> None:
        """Claims to the end, and after a while again: then nobody is left who may start."""
        for _ in range(3):
            for place in range(SESSIONS):
                while self.claim_by(place, 20):
                    self.see_who_waits()
            self.pass_time(1.5)
            self.see_who_waits()
        for place in range(SESSIONS):
            while self.claim_by(place, 20):
                pass
        left = [message for ident, message in self.live.items() if self.may_start(ident)]
        assert not left, f"no claim finds {left}"

    def drain(self) -> None:
        for _ in range(200):
            self.settle()
            for ident in [ident for ident, message in self.live.items() if message.lease is not None]:
                self.end(ident, 1)
            if not self.live:
                break
        assert not self.live
        assert self.other.rows("select id, state from message_queue") == []
        found = self.other.rows("select id, state from all_messages")
        assert len(found) == len(self.ended) and dict(found) == self.ended
        assert violations(self.other) == []


KINDS: dict[str, tuple[Callable[[], Limits], dict[str, Any]]] = {
    "fair share": (Limits, {"fair_share": True}),
    "limit": (lambda: Limits(at_once=2), {"max_concurrency_per_key": 2}),
    "rate": (lambda: Limits(a_second=4), {"rate_limit_per_key": 4}),
    "all": (
        lambda: Limits(at_once=3, a_second=5),
        {"fair_share": True, "max_concurrency_per_key": 3, "rate_limit_per_key": 5},
    ),
}


def run(sessions: FrozenSessions, kind: str, seed: int, steps: int) -> None:
    limits, settings = KINDS[kind]
    walk = Walk(sessions, seed, limits(), **settings)
    try:
        for _ in range(steps):
            walk.step()
        walk.drain()
    except BaseException as error:
        error.add_note(f"{kind}, seed {seed}, {walk.now:g} s, {len(walk.ended)} ended")
        raise


@pytest.mark.oldest_and_newest
@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_keys_that_come_and_go_are_each_served_and_no_limit_is_exceeded(
    sessions: FrozenSessions, kind: str, seed: int
) -> None:
    run(sessions, kind, seed, steps=300)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("key_room", "r.state = 'running'", "r.state = 'done'"),
        ("key_tokens", "k.queue = p_queue.name", "k.queue <> p_queue.name"),
    ],
)
def test_the_walk_notices_what_may_not_start(
    own_sessions: FrozenSessions, name: str, old: str, new: str
) -> None:
    """The mutation: a gate that lets all through is found in a walk."""
    break_function(own_sessions.database, name, old, new)
    with pytest.raises(AssertionError, match="may not start"):
        run(own_sessions, "all", seed=1, steps=300)
