"""A loop that works in many bounded steps is alive (SPEC O4): connecting to a name with many addresses, for
one.
"""

from __future__ import annotations

from packhorse.worker.db.connection import connect
from packhorse.worker.service import Service
from tests.support.waiting import wait_until

ADDRESSES = 3


class Connecting(Service):
    """Connects once in each turn; notes its ticks."""

    name = "connecting"

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.ticks: list[float] = []
        self.ticked = self.ticks.append
        self.turns: list[int] = []

    def run_once(self) -> float:
        before = len(self.ticks)
        try:
            connect(self.url, connect_timeout_seconds=1)
        finally:
            self.turns.append(len(self.ticks) - before)
        return 60.0


def test_a_loop_ticks_before_each_address_that_it_tries():
    """Each has a timeout of its own: seven that do not answer took longer than hang_seconds, and the process
    was killed for it.
    """
    service = Connecting(f"host={','.join(['127.0.0.1'] * ADDRESSES)} port=1 user=nobody dbname=none")
    service.start()
    wait_until(lambda: service.turns, 30)
    service.stop()
    assert service.wait(30)
    assert service.turns[0] == ADDRESSES


def test_a_loop_that_is_not_judged_stays_so_while_it_connects():
    service = Connecting("host=127.0.0.1 port=1 user=nobody dbname=none")
    service.judged = False
    service.start()
    wait_until(lambda: service.turns, 30)
    service.stop()
    assert service.wait(30)
    assert service.turns[0] == 0
