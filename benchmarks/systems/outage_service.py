"""A service over HTTP that can be down: `python -m benchmarks.systems.outage_service <seconds of an answer>`.

It says `ready <port>`. On standard input: `down`, and every request gets a 500 at once; `up`; each is
answered by `asked <requests so far>`.
"""

from __future__ import annotations

import asyncio
import sys

ASK_QUEUE = "ask"
SERVICE_URL = "BENCH_SERVICE_URL"
"""Where the handlers of that queue (outage_actors.py) find the service."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
FAILED = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


class Service:
    """down: does it fail now?"""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.down = False
        self.asked = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: requests without a body, one after the other."""
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                self.asked += 1
                if not self.down:
                    await asyncio.sleep(self.seconds)
                writer.write(FAILED if self.down else OK)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client is gone
        finally:
            writer.close()


async def main(seconds: float) -> None:
    """Serve until standard input ends."""
    service = Service(seconds)
    server = await asyncio.start_server(service.serve, "127.0.0.1", 0, backlog=4096)
    print(f"ready {server.sockets[0].getsockname()[1]}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        service.down = line.strip() == "down"
        print(f"asked {service.asked}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
