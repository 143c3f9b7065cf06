"""Meta's side: deliveries made from payloads/*.json for several conversations, and a thread that makes them.

The files are the documented shapes with Meta's own sample values; each delivery gets a phone number, fresh
ids and the time. Deliveries come again as Meta sends them again: some although they had arrived, and a
cut-off one because it was refused.
"""

from __future__ import annotations

import base64
import copy
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from examples.whatsapp.cloud_api import CloudApi
from examples.whatsapp.events import Events
from examples.whatsapp.order import OrderBook
from examples.whatsapp.webhook import Receipt, ingest
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import Link
from packhorse.worker.errors import StoreUnavailable

PAYLOADS = Path(__file__).parent / "payloads"
PEOPLE = (
    ("16505550101", "Sheena Nelson"),
    ("16505550102", "Amara Okafor"),
    ("16505550103", "Jonas Weber"),
    ("16505550104", "Lucía Romero"),
    ("16505550105", "Mei Tanaka"),
    ("16505550106", "Pascal Uwimana"),
)
#: What every conversation sends, each beginning at another place...
COMMON = (
    "text",
    "status_sent",
    "status_delivered",
    "text",
    "interactive_list_reply",
    "status_read",
    "image",
    "text_batch",
    "location",
    "interactive_button_reply",
    "audio",
    "text",
    "status_failed",
    "interactive_booking",
    "text",
    "text",
)
#: ...and what only one of them sends: always fails, fails twice, slow, malformed, unknown kind, error of the
#: account.
SPECIAL = (
    "interactive_booking_fails",
    "image_late",
    "document_slow",
    "malformed_message_without_id",
    "unsupported",
    "account_error",
)
#: So many texts each of them writes at once, somewhere.
BURST = 5
LATE_ANSWERS = 2
SLOW_SECONDS = 2.0
REDELIVER_EVERY = 7
REDELIVER_AFTER = 4


@dataclass(slots=True)
class Delivery:
    """One POST to the webhook. inbound: (phone, wamid) of its messages, in order. late, slow: ids of media
    with a bad moment.
    """

    name: str
    body: bytes
    inbound: list[tuple[str, str]] = field(default_factory=list)
    late: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


class Deliveries:
    """Makes deliveries. run_id goes into every id: two runs on one database have nothing in common."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._count = 0
        self._documents = {
            path.stem: json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(PAYLOADS.glob("*.json"))
        }

    def rounds(self, count: int | None) -> Iterator[Delivery]:
        """`count` rounds through everything (None: for ever), conversations interleaved, with the second
        deliveries in between.
        """
        again: list[tuple[int, Delivery]] = []  # (place at which it comes again, delivery), in order
        for place, delivery in enumerate(self._all(count), 1):
            while again and again[0][0] <= place:
                yield again.pop(0)[1]
            if place % 40 == 20:
                yield Delivery(f"{delivery.name} cut off", delivery.body[: len(delivery.body) // 2])
            yield delivery
            if place % REDELIVER_EVERY == 0:
                again.append((place + REDELIVER_AFTER, delivery))
        for _, delivery in again:
            yield delivery

    def _all(self, count: int | None) -> Iterator[Delivery]:
        playlists = []
        for number, special in enumerate(SPECIAL):
            start = 3 * number % len(COMMON)
            names = [*COMMON[start:], *COMMON[:start]]
            names.insert(4 + number, special)
            playlists.append(names)
        done = 0
        while count is None or done < count:
            for step in zip(*playlists, strict=True):
                for (phone, person), name in zip(PEOPLE, step, strict=True):
                    for _ in range(BURST if name == "interactive_list_reply" else 0):
                        yield self.make("text", phone, person)
                    yield self.make(name, phone, person)
            done += 1

    def make(self, name: str, phone: str, person: str) -> Delivery:
        """The payload file `name`, as if this person had caused it just now."""
        document = copy.deepcopy(self._documents[name])
        delivery = Delivery(name, b"")
        for change in (change for entry in document["entry"] for change in entry["changes"]):
            value = change["value"]
            for contact in value.get("contacts", []):
                contact["wa_id"] = phone
                contact["profile"]["name"] = person
            for message in value.get("messages", []):
                message["from"], message["timestamp"] = phone, str(int(time.time()))
                if "id" in message:
                    message["id"] = self._wamid(phone)
                    delivery.inbound.append((phone, message["id"]))
                self._fresh_medium(name, message, delivery)
            for status in value.get("statuses", []):
                status["id"], status["recipient_id"], status["timestamp"] = (
                    self._wamid(phone),
                    phone,
                    str(int(time.time())),
                )
            for error in value.get("errors", []):
                error["error_data"]["details"] += f" ({self._run_id}.{self._next()})"
        delivery.body = json.dumps(document, ensure_ascii=False).encode()
        return delivery

    def _fresh_medium(self, name: str, message: dict[str, Any], delivery: Delivery) -> None:
        medium = message[message["type"]] if message["type"] in ("image", "document", "audio") else None
        if medium is None:
            return
        medium["id"] = f"{int(self._run_id, 16) % 10**6:06d}{self._next():010d}"
        if name == "image_late":
            delivery.late.append(medium["id"])
        elif name == "document_slow":
            delivery.slow.append(medium["id"])

    def _wamid(self, phone: str) -> str:
        return (
            "wamid."
            + base64.urlsafe_b64encode(f"{phone}.{self._run_id}.{self._next():08d}".encode()).decode()
        )

    def _next(self) -> int:
        self._count += 1
        return self._count


class Feed:
    """A thread that delivers until it has no more or is told to stop. The totals are written by it alone."""

    def __init__(
        self,
        open_connection: Callable[[], DeadlineConnection],
        deliveries: Iterator[Delivery],
        run_id: str,
        book: OrderBook,
        api: CloudApi,
        events: Events,
        pace_seconds: float,
    ) -> None:
        self.received = self.enqueued = self.merged = self.deduplicated = self.refused = 0
        self.failure: BaseException | None = None  # what ended the thread, when it did not end well
        self._link = Link(open_connection)
        self._deliveries = deliveries
        self._run_id = run_id
        self._book, self._api, self._events = book, api, events
        self._pace_seconds = pace_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> Feed:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """No further delivery; the one at work is finished (at most the deadline of its database call)."""
        self._stop.set()
        self._thread.join(30)

    @property
    def finished(self) -> bool:
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            for delivery in self._deliveries:
                for phone, wamid in delivery.inbound:
                    self._book.announce(phone, wamid)
                    if delivery.late or delivery.slow:
                        self._api.spare(wamid)
                self._api.late_media.update(dict.fromkeys(delivery.late, LATE_ANSWERS))
                self._api.slow_media.update(dict.fromkeys(delivery.slow, SLOW_SECONDS))
                delivery.late.clear()  # bad moments are for the first delivery
                delivery.slow.clear()
                self._deliver(delivery)
                if self._stop.wait(self._pace_seconds):
                    break
        except BaseException as error:  # shown by the main thread, which then ends with an error
            self.failure = error
        finally:
            self._link.close()

    def _deliver(self, delivery: Delivery) -> None:
        """Until it was accepted, as Meta does: a database that is away costs time, never a message."""
        while not self._stop.is_set():
            try:
                with self._link.connection() as connection:
                    receipt = ingest(connection, delivery.body, correlation_id=self._run_id)
            except StoreUnavailable as error:
                self._events.add(f"webhook not accepted, delivered again: {error}")
                self._stop.wait(1.0)
                continue
            self._count(delivery, receipt)
            return

    def _count(self, delivery: Delivery, receipt: Receipt) -> None:
        self.received += receipt.received
        self.enqueued += len(receipt.enqueued)
        self.merged += receipt.merged
        self.deduplicated += receipt.deduplicated
        self.refused += len(receipt.refused)
        if receipt.deduplicated:
            self._events.add(f"{delivery.name} delivered again: recognised, not enqueued")
        for reason in receipt.refused:
            self._events.add(f"{delivery.name} refused: {reason}")
