"""A proxy between a client and PostgreSQL that can cut, refuse and go deaf: the network's ways to fail."""

from __future__ import annotations

import selectors
import socket
import threading
from pathlib import Path


class Proxy:
    """TCP on 127.0.0.1 in front of a server's unix socket. One thread owns every socket; others only set
    flags.

    deaf: bytes stay where they are and connections stay open, as behind a dead host or a stopped server.
    """

    def __init__(self, socket_dir: Path) -> None:
        self._target = str(socket_dir / ".s.PGSQL.5432")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._deaf = threading.Event()
        self._cut = threading.Event()
        self._closing = threading.Event()
        self._refusing = False
        self._refused_name = b""
        self._names: dict[socket.socket, bytes] = {}  # client -> the application_name of its startup packet
        self._pairs: dict[socket.socket, socket.socket] = {}
        self.accepted_total = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    def url(self, database: str, role: str) -> str:
        return f"postgresql://{role}@127.0.0.1:{self.port}/{database}"

    def go_deaf(self) -> None:
        self._deaf.set()

    def hear_again(self) -> None:
        self._deaf.clear()

    def cut(self) -> None:
        """Close every connection; new ones are accepted."""
        self._cut.set()

    def refuse(self, refusing: bool) -> None:
        """Accept and close at once while refusing; the start of it cuts existing connections."""
        self._refusing = refusing
        if refusing:
            self._cut.set()

    def refuse_named(self, application_name: str) -> None:
        """Cut the connections of that name, and every later one once it has said its name; "": none any
        more.
        """
        self._refused_name = application_name.encode()

    def close(self) -> None:
        self._closing.set()
        self._thread.join(10)
        self._listener.close()

    def _run(self) -> None:
        while not self._closing.is_set():
            if self._cut.is_set():
                self._cut.clear()
                self._drop_all()
            if self._deaf.is_set():
                self._closing.wait(0.02)
                continue
            with selectors.DefaultSelector() as selector:
                selector.register(self._listener, selectors.EVENT_READ)
                for end in self._pairs:
                    selector.register(end, selectors.EVENT_READ)
                for client in [client for client, name in self._names.items() if name == self._refused_name]:
                    self._close(client)
                for key, _ in selector.select(0.02):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif key.fileobj in self._pairs and not self._deaf.is_set():
                        self._forward(key.fileobj)  # type: ignore[arg-type]
        self._drop_all()

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.accepted_total += 1
        if self._refusing:
            client.close()
            return
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(self._target)
        except OSError:
            client.close()
            server.close()
            return
        self._pairs[client], self._pairs[server] = server, client

    def _forward(self, source: socket.socket) -> None:
        target = self._pairs[source]
        try:
            data = source.recv(65536)
            if b"application_name\0" in data and source not in self._names:
                self._names[source] = data.partition(b"application_name\0")[2].partition(b"\0")[0]
            if data and self._names.get(source, b"-") != self._refused_name:
                target.sendall(data)
                return
        except OSError:
            pass
        self._close(source)

    def _close(self, end: socket.socket) -> None:
        for one in (end, self._pairs.get(end, end)):
            self._pairs.pop(one, None)
            self._names.pop(one, None)
            one.close()

    def _drop_all(self) -> None:
        self._names.clear()
        for end in list(self._pairs):
            end.close()
        self._pairs.clear()
