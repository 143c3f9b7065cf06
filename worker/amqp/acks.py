"""Acknowledging deliveries with few frames: one for all that are done up to the first that is not."""

from __future__ import annotations

from collections import deque

from pika.channel import Channel


class Acks:
    """Of one channel; used by its thread. A delivery is acknowledged by flush(), after done()."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._order: deque[int] = deque()  # as they were delivered; some are answered already
        self._open: set[int] = set()  # not answered
        self._done: set[int] = set()  # to be acknowledged

    def delivered(self, tag: int) -> None:
        self._order.append(tag)
        self._open.add(tag)

    def done(self, tag: int) -> None:
        self._done.add(tag)

    def give_back(self, tag: int) -> None:
        """To its queue, for anybody."""
        self._open.discard(tag)
        self._channel.basic_nack(tag, multiple=False, requeue=True)

    def flush(self) -> None:
        """Acknowledge all that are done."""
        if not self._done:
            return
        order, opened, done = self._order, self._open, self._done
        last = 0
        while order and (order[0] in done or order[0] not in opened):
            tag = order.popleft()
            if tag in done:
                last = tag
                done.discard(tag)
                opened.discard(tag)
        if last:
            # those below it are answered or done
            self._channel.basic_ack(last, multiple=True)
        for tag in sorted(done):
            self._channel.basic_ack(tag)
            opened.discard(tag)
        done.clear()
