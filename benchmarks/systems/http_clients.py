"""Producers with many connections at once, in one process: `python -m benchmarks.systems.http_clients http
<url> <token> <messages> <in a request> <connections>`, or `… sql <database> <messages> <connections>`.

Each says `done <messages per second>`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable, Iterator

import aiohttp
import psycopg

from benchmarks.harness.payload import payload

SQL = "select message_id from packhorse.enqueue_message('http', 'bench', %s::jsonb)"
Send = Callable[[], Awaitable[None]]


async def _rate(senders: list[Send], calls: int) -> float:
    """Calls per second, each sender's one after the other."""

    async def work(send: Send, numbers: Iterator[int]) -> None:
        for _ in numbers:
            await send()

    for send in senders:  # connects
        await send()
    numbers = iter(range(calls))
    began = time.perf_counter()
    await asyncio.gather(*(work(send, numbers) for send in senders))
    return calls / (time.perf_counter() - began)


async def over_http(url: str, token: str, count: int, in_one: int, connections: int) -> float:
    """Messages per second by POST /v1/messages."""
    one = {"queue": "http", "message_type": "bench", "payload": payload(1)}
    body = json.dumps(one if in_one == 1 else [one] * in_one).encode()
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

        async def send() -> None:
            async with session.post(f"{url}/v1/messages", data=body) as answer:
                if answer.status != 201:
                    raise RuntimeError(f"{answer.status}: {await answer.text()}")
                await answer.read()

        return await _rate([send] * connections, count // in_one) * in_one


async def over_sql(url: str, count: int, connections: int) -> float:
    """Messages per second by enqueue_message, each in a transaction of its own."""
    opened = [await psycopg.AsyncConnection.connect(url, autocommit=True) for _ in range(connections)]
    text = json.dumps(payload(1))

    def sender(connection: psycopg.AsyncConnection[tuple[object, ...]]) -> Send:
        async def send() -> None:
            await connection.execute(SQL, (text,))

        return send

    found = await _rate([sender(connection) for connection in opened], count)
    for connection in opened:
        await connection.close()
    return found


if __name__ == "__main__":
    way, place, *rest = sys.argv[1:]
    if way == "http":
        token, *numbers = rest
        rate = asyncio.run(over_http(place, token, *map(int, numbers)))
    else:
        rate = asyncio.run(over_sql(place, *map(int, rest)))
    print(f"done {rate}", flush=True)
