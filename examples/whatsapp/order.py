"""What must have happened per conversation, compared with what the Cloud API saw (SPEC P4).

The feed announces each inbound message before it delivers it; the stand-in of the Cloud API notes each
request. A request for a message that comes after a request for a later one of the same phone is out of order,
whatever the answer was.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from dataclasses import dataclass, field

#: Messages that are remembered, oldest forgotten first: `run` may go on for days.
REMEMBERED = 100_000


@dataclass(slots=True)
class Conversation:
    """One phone number. `highest`: the latest message that any request was about. `recent`: (number, HTTP
    status), latest last.
    """

    announced: int = 0
    highest: int = 0
    replies: int = 0
    recent: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=9))


@dataclass(slots=True)
class Announced:
    """An inbound message: its phone, its place in the conversation from 1, and how many replies it got."""

    phone: str
    number: int
    replies: int = 0


class OrderBook:
    """Thread-safe: announced by the feed, noted by the stand-in's threads, read by the view."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._messages: OrderedDict[str, Announced] = OrderedDict()
        self.conversations: dict[str, Conversation] = {}
        self.out_of_order: deque[str] = deque(maxlen=100)
        self.repeated: deque[str] = deque(maxlen=100)
        self.answers: dict[int, int] = {}  # HTTP status -> how often

    def announce(self, phone: str, wamid: str) -> None:
        """The message will be delivered now, after all that were announced before. A second announcement
        changes nothing.
        """
        with self._lock:
            if wamid in self._messages:
                return
            conversation = self.conversations.setdefault(phone, Conversation())
            conversation.announced += 1
            self._messages[wamid] = Announced(phone, conversation.announced)
            if len(self._messages) > REMEMBERED:
                self._messages.popitem(last=False)

    def note(self, phone: str, wamid: str, status: int) -> int:
        """The Cloud API answered a request about `wamid` with `status`; returns its number, 0 when it was
        never announced.
        """
        with self._lock:
            self.answers[status] = self.answers.get(status, 0) + 1
            message = self._messages.get(wamid)
            if message is None:
                return 0  # left over from an earlier run
            conversation = self.conversations[message.phone]
            if phone != message.phone:
                self.out_of_order.append(
                    f"message {message.number} of {message.phone} was answered to {phone}"
                )
            if message.number < conversation.highest:
                self.out_of_order.append(f"{phone}: message {message.number} after {conversation.highest}")
            conversation.highest = max(conversation.highest, message.number)
            conversation.recent.append((message.number, status))
            if status == 200:
                conversation.replies += 1
                message.replies += 1
                if message.replies > 1:
                    self.repeated.append(
                        f"{phone}: message {message.number} was answered {message.replies} times"
                    )
            return message.number

    def knows(self, wamid: str) -> bool:
        """Was it announced in this run (and is it remembered)?"""
        with self._lock:
            return wamid in self._messages

    def answered(self) -> set[str]:
        """The wamids that got at least one reply, of those remembered."""
        with self._lock:
            return {wamid for wamid, message in self._messages.items() if message.replies}

    def snapshot(self) -> dict[str, Conversation]:
        """A copy for the view."""
        with self._lock:
            return {
                phone: Conversation(c.announced, c.highest, c.replies, deque(c.recent, maxlen=9))
                for phone, c in self.conversations.items()
            }
