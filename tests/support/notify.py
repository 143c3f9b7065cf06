"""The service manager's end of sd_notify."""

from __future__ import annotations

import socket
from typing import Any


class Manager:
    """A datagram socket that remembers every message; `address` is what NOTIFY_SOCKET would hold."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.setblocking(False)
        self._heard: list[dict[str, str]] = []

    def heard(self) -> list[dict[str, str]]:
        """All messages so far, each as its assignments."""
        while True:
            try:
                message = self._socket.recv(65536).decode()
            except BlockingIOError:
                return self._heard
            self._heard.append(dict(line.split("=", 1) for line in message.split("\n")))

    def all(self, name: str) -> list[str]:
        """Values of one name, in order."""
        return [message[name] for message in self.heard() if name in message]

    def order(self, *names: str) -> list[str]:
        """Which of these names came, in order."""
        return [name for message in self.heard() for name in message if name in names]

    def __enter__(self) -> Manager:
        return self

    def __exit__(self, *_: Any) -> None:
        self._socket.close()
