"""How requests are read: httptools under uvicorn, with a bound on what is no body.

uvicorn bounds the headers that h11 reads, and none that httptools reads: somebody without a token could fill
the memory with one request.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Request line and headers, or what ends a body in chunks.
MOST_HEAD_BYTES = 65_536


class BoundedHttp(HttpToolsProtocol):
    """Answers 400 and hangs up when more than MOST_HEAD_BYTES have come that are no body."""

    _unread = 0  # bytes since headers, a part of a body or a message were complete

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        super().data_received(data)
        if self._unread > MOST_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response(f"The headers have more than {MOST_HEAD_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unread = 0
        super().on_message_complete()
