"""An endpoint that takes every push, and a client that does nothing else: `python -m
benchmarks.systems.push_endpoint serve` says `ready <port>`; `… post <url> <requests> <at once>` says
`done <requests per second>`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator

import aiohttp
import uvloop

TAKEN = b"HTTP/1.1 204 No Content\r\n\r\n"
LENGTH = b"content-length:"
BODY = b'{"number": 1, "text": "what a message of the benchmark looks like, about"}'


class Endpoint(asyncio.Protocol):
    """One connection: requests with a body, each answered by 204."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what the answers go to."""
        self._transport = transport
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """Answer every request that is complete."""
        self._received += data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[:end].lower()
            at = head.find(LENGTH)
            size = int(head[at + len(LENGTH) :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._received) < end + 4 + size:
                return
            self._received = self._received[end + 4 + size :]
            self._transport.write(TAKEN)  # type: ignore[attr-defined]


async def serve() -> None:
    """Serve until standard input ends."""
    server = await asyncio.get_running_loop().create_server(Endpoint, "127.0.0.1", 0, backlog=4096)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    await asyncio.to_thread(sys.stdin.read)


async def post(url: str, count: int, at_once: int) -> None:
    """The client of a push, bare: the same requests without a queue."""

    async def some(numbers: Iterator[int]) -> None:
        for _ in numbers:
            async with session.post(url, data=BODY, allow_redirects=False) as answer:
                await answer.read()

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as session:
        await asyncio.gather(*(some(iter(range(1))) for _ in range(at_once)))  # connects
        numbers = iter(range(count))
        began = time.perf_counter()
        await asyncio.gather(*(some(numbers) for _ in range(at_once)))
        print(f"done {count / (time.perf_counter() - began)}", flush=True)


if __name__ == "__main__":
    uvloop.run(serve() if sys.argv[1] == "serve" else post(sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
