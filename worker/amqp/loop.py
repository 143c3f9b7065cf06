"""Two connections to RabbitMQ in one event loop, in the thread that runs it.

One consumes, one publishes: a broker that is short of memory or disk reads nothing more of a connection
that publishes, and acknowledgements must not wait for that. When either is lost, the other is closed, too:
what was delivered is somebody else's then, and what was published and not confirmed may or may not be
there.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from typing import Any

from pika import BasicProperties, SelectConnection
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.exceptions import AMQPError
from pika.frame import Method
from pika.spec import Basic

from packhorse.worker.amqp.connection import BrokerAway, explained, parameters, root_of
from packhorse.worker.config import Settings
from packhorse.worker.errors import ConfigError

logger = logging.getLogger("packhorse.amqp")

#: A connection that has not been opened after this is given up; several hosts are tried within it.
OPEN_SECONDS = 30.0
CLOSE_SECONDS = 5.0

#: Called when a message is with the broker (True), or is not: nobody took it, or a queue refuses (False).
OnConfirm = Callable[[bool], None]


class BrokerLoop:
    """on_open(channel): the channel to consume on is there, and one can publish. Everything but `call` and
    `wake` is for the thread in run().
    """

    def __init__(self, settings: Settings, purpose: str, on_open: Callable[[Channel], None]) -> None:
        self._settings = settings
        self._purpose = purpose
        self._on_open = on_open
        self.ioloop = IOLoop()
        self._connections: list[SelectConnection] = []
        self._consuming: Channel | None = None
        self._publishing: Channel | None = None
        self._confirming = False
        self._error: BaseException | None = None
        self._ending = False
        self._published = 0
        self._unconfirmed: dict[int, tuple[OnConfirm, str | None]] = {}
        self._returned: set[str] = set()
        self.blocked = False

    # -- any thread ----------------------------------------------------------------------------------
    def call(self, function: Callable[[], Any]) -> None:
        """Run it in the loop's thread, soon; nothing after the end of run()."""
        self.ioloop.add_callback_threadsafe(function)

    # -- the loop's thread ---------------------------------------------------------------------------
    def run(self) -> None:
        """Until close() has come to its end. Raises ConfigError, BrokerAway for every other end."""
        hosts = parameters(self._settings, self._purpose)
        random.shuffle(hosts)  # the nodes of a cluster share the connections
        timer = self.ioloop.call_later(OPEN_SECONDS, self._late)
        for _ in range(2):
            SelectConnection.create_connection(hosts, self._on_connection, self.ioloop)
        try:
            self.ioloop.start()
        finally:
            self.ioloop.remove_timeout(timer)
            self.ioloop.close()
        if self._error is not None:
            error = self._error
            raise error if isinstance(error, (BrokerAway, ConfigError)) else explained(error, self._settings)

    def _late(self) -> None:
        if not self._confirming or self._consuming is None:
            self._lost(BrokerAway(f"RabbitMQ: no connection within {OPEN_SECONDS:.0f} s"))

    def _on_connection(self, result: Any) -> None:
        if isinstance(result, BaseException):
            self._lost(root_of(result))
            return
        if self._ending:
            result.close()
            return
        connection: SelectConnection = result
        self._connections.append(connection)
        connection.add_on_close_callback(lambda _, reason: self._closed(connection, reason))
        if len(self._connections) == 1:
            connection.channel(on_open_callback=self._on_consuming)
        else:
            connection.add_on_connection_blocked_callback(self._on_blocked)
            connection.add_on_connection_unblocked_callback(self._on_unblocked)
            connection.channel(on_open_callback=self._on_publishing)

    def _on_consuming(self, channel: Channel) -> None:
        self._consuming = channel
        channel.add_on_close_callback(lambda _, reason: self._lost(reason))
        channel.add_on_cancel_callback(lambda _: self._lost(BrokerAway("RabbitMQ: a queue has gone away")))
        self._opened()

    def _on_publishing(self, channel: Channel) -> None:
        self._publishing = channel
        channel.add_on_close_callback(lambda _, reason: self._lost(reason))
        channel.add_on_return_callback(self._on_return)
        channel.confirm_delivery(self._on_answer, callback=self._on_confirming)

    def _on_confirming(self, _frame: Any) -> None:
        self._confirming = True
        self._opened()

    def _opened(self) -> None:
        """Called when either is there."""
        if self._consuming is not None and self._confirming:
            self._on_open(self._consuming)

    def _on_blocked(self, _connection: Any, frame: Method[Any]) -> None:
        self.blocked = True
        logger.warning("amqp_blocked reason=%s: what is to be published waits", frame.method.reason)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self.blocked = False
        logger.info("amqp_unblocked")

    # -- publishing ----------------------------------------------------------------------------------
    def publish(
        self, address: tuple[str, str], body: bytes, properties: BasicProperties, on_confirm: OnConfirm
    ) -> None:
        """To (exchange, routing key). on_confirm is not called when the connection is lost before."""
        channel = self._publishing
        if channel is None or not channel.is_open:
            return
        self._published += 1
        self._unconfirmed[self._published] = (on_confirm, properties.message_id)
        channel.basic_publish(*address, body, properties, mandatory=True)

    @property
    def unconfirmed(self) -> int:
        return len(self._unconfirmed)

    def _on_return(self, _channel: Channel, _method: Any, properties: BasicProperties, _body: bytes) -> None:
        """Nobody takes it; its confirmation comes next."""
        self._returned.add(properties.message_id)

    def _on_answer(self, frame: Method[Any]) -> None:
        method = frame.method
        good = isinstance(method, Basic.Ack)
        tags = (
            [tag for tag in self._unconfirmed if tag <= method.delivery_tag]
            if method.multiple
            else [method.delivery_tag]
        )
        for tag in tags:
            on_confirm, message_id = self._unconfirmed.pop(tag)
            returned = message_id in self._returned
            self._returned.discard(message_id or "")
            on_confirm(good and not returned)

    # -- the end -------------------------------------------------------------------------------------
    def close(self) -> None:
        """In good order: run() returns soon. What is not acknowledged goes back to its queue."""
        self._ending = True
        self.ioloop.call_later(CLOSE_SECONDS, self.ioloop.stop)
        self._close_connections()
        if not self._connections:
            self.ioloop.stop()

    def lose(self, error: BaseException) -> None:
        """Give the connections up, and connect anew."""
        self._lost(error)

    def _lost(self, error: BaseException) -> None:
        if self._ending:
            return
        self._error = self._error or error
        self._ending = True
        self.ioloop.call_later(CLOSE_SECONDS, self.ioloop.stop)
        self._close_connections()
        if not self._connections:
            self.ioloop.stop()

    def _close_connections(self) -> None:
        for connection in self._connections:
            try:
                connection.close()
            except AMQPError:
                pass  # it is closing already

    def _closed(self, connection: SelectConnection, reason: BaseException) -> None:
        self._connections.remove(connection)
        if not self._ending:
            self._lost(reason)
        if not self._connections:
            self.ioloop.stop()
