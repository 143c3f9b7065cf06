"""What a test asks of a broker: to empty queues, and to wait until they are empty."""

from __future__ import annotations

import threading
import time

from dramatiq.common import q_name
from dramatiq.errors import QueueJoinTimeout

from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.queries import sql


class Emptying:
    """Part of the broker."""

    queues: set[str]

    @property
    def pool(self) -> ConnectionPool:
        raise NotImplementedError

    def flush(self, queue_name: str) -> None:
        """Cancel every message of the queue `queue_name` that does not run; for tests."""
        with self.pool.connection() as connection:
            connection.execute(sql("flush_queue"), (q_name(queue_name),))

    def flush_all(self) -> None:
        for queue in self.queues:
            self.flush(queue)

    def join(self, queue_name: str, *, timeout: int | None = None) -> None:
        """Wait until the queue `queue_name` holds no live message. Raises QueueJoinTimeout after timeout
        (ms). For tests.
        """
        deadline = None if timeout is None else time.monotonic() + timeout / 1000
        while True:
            with self.pool.connection() as connection:
                if not connection.execute(sql("queue_has_messages"), (q_name(queue_name),)).fetchone()[0]:  # type: ignore[index]
                    return
            if deadline is not None and time.monotonic() >= deadline:
                raise QueueJoinTimeout(queue_name)
            threading.Event().wait(0.02)
