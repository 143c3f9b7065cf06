"""Enqueue over HTTP (SPEC W8): `POST /v1/messages`, for programs that have neither Python nor SQL.

A request is one transaction: one statement checks the token, its queues and the messages, and puts them all
on their queues, or none (enqueue_by_token in migrations/functions/tokens.sql). Errors are problem+json with
field and fix.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import re
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from packhorse.worker.broker.waking import Waking
from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.db.pool import ConnectionPool
from packhorse.worker.db.sessions import open_work
from packhorse.worker.errors import InvalidArgument, StoreConflict, StoreError, StoreUnavailable
from packhorse.worker.store import tokens
from packhorse.worker.store.wakes import wake_channels
from packhorse.worker.web.access import Refused
from packhorse.worker.web.openapi import document
from packhorse.worker.web.reading import Site

logger = logging.getLogger("packhorse.web")

MOST_BODY_BYTES = 4 * 1_048_576
MOST_MESSAGES = 1_000
#: Connections of the API to the database, and threads that use them.
CONNECTIONS = 32
#: How long an Idempotency-Key holds, where a message says nothing else.
KEY_WINDOW = "1 day"
#: Tokens whose rate is remembered.
MOST_RATES = 10_000
#: A burst of so many seconds' messages goes through at once; at least one full request does.
BURST_SECONDS = 1.0
_BEARER = re.compile(r"bearer +(phk_[A-Za-z0-9_-]{20,100})", re.IGNORECASE)
_KEY = re.compile(r"[\x21-\x7e]{1,200}")


class ApiProblem(Exception):
    """A request that is not done: what problem+json says."""

    def __init__(
        self,
        status: int,
        title: str,
        detail: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.headers = headers or {}
        said = {"title": title, "status": status, "detail": detail, "field": field, "hint": hint}
        self.body = {"type": "about:blank"} | {key: value for key, value in said.items() if value is not None}
        super().__init__(detail)


class Rates:
    """How many messages each token may still send: a bucket that fills all the time. Used by one loop.

    per_second: 0: any number. clock: monotonic seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._most = max(per_second * BURST_SECONDS, MOST_MESSAGES)
        self._clock = clock
        self._buckets: OrderedDict[bytes, tuple[float, float]] = OrderedDict()  # what was left, and when

    def take(self, token: str, count: int) -> float:
        """Seconds to wait; 0: they are taken."""
        if not self._per_second:
            return 0.0
        key, now = hashlib.sha256(token.encode()).digest(), self._clock()
        left, at = self._buckets.get(key, (self._most, now))
        left = min(self._most, left + (now - at) * self._per_second)
        wait = (count - left) / self._per_second
        self._buckets[key] = (left if wait > 0 else left - count, now)
        self._buckets.move_to_end(key)
        while len(self._buckets) > MOST_RATES:
            self._buckets.popitem(last=False)
        return max(0.0, wait)


class EnqueueApi:
    """The routes below /v1 for one database. check_way: raises Refused for who comes past the proxy."""

    def __init__(self, site: Site, check_way: Callable[[HTTPConnection], None]) -> None:
        self._check_way = check_way
        self._settings = site.settings
        self._waking = Waking()
        if site.settings.producers_publish:
            self._waking.tell(site.settings, set())  # what is no Redis URL is said at the start
        self._rates = Rates(site.settings.web_api_rate)
        self._pool = ConnectionPool(lambda: open_work(site.settings, "api", url=site.url), CONNECTIONS)
        self._threads = ThreadPoolExecutor(CONNECTIONS, "web-api")
        self.routes: list[BaseRoute] = [
            Route("/messages", self._messages, methods=["POST"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
        ]

    def close(self) -> None:
        """End its threads and connections."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._pool.close()

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(document(request.scope.get("root_path", "").removesuffix("/v1")))

    async def _messages(self, request: Request) -> Response:
        try:
            self._check_way(request)
            return await self._enqueue(request)
        except Refused as refused:
            problem = ApiProblem(refused.status, "Refused", refused.text, hint=refused.hint or None)
        except ApiProblem as error:
            problem = error
        except StoreError as error:
            problem = _problem_of(error)
        except Exception:  # a bug of ours is in the log; the caller gets an answer like any other
            logger.error("web_request_failed path=%s", request.url.path, exc_info=True)
            problem = ApiProblem(500, "The API has failed", "Its log says why.")
        headers = {"Cache-Control": "no-store", **problem.headers}
        return JSONResponse(problem.body, problem.status, headers, "application/problem+json")

    async def _enqueue(self, request: Request) -> Response:
        token = _token(request)
        body = await _body(request)
        said = _parsed(body)
        alone = isinstance(said, dict)
        messages = [said] if alone else said
        if not isinstance(messages, list) or not 1 <= len(messages) <= MOST_MESSAGES:
            raise ApiProblem(
                400,
                "No messages",
                f"messages: the body must be one object, or an array of 1 to {MOST_MESSAGES} of them",
                field="messages",
            )
        key = _key(request, messages)
        wait = self._rates.take(token, len(messages))
        if wait:
            seconds = str(max(1, math.ceil(wait)))
            raise ApiProblem(
                429,
                "Too many messages",
                "This token sends more messages a second than web_api_rate allows.",
                hint=f"Try again in {seconds} s.",
                headers={"Retry-After": seconds},
            )
        text = f"[{body}]" if alone else body  # as it came: numbers keep their digits
        if key is None:
            store = partial(tokens.enqueue, token=token, messages=text)
        else:
            store = partial(
                tokens.enqueue_once,
                token=token,
                messages=text,
                key=f"http:{key}",
                window=KEY_WINDOW,
                many=not alone,
            )
        queues = {str(one["queue"]) for one in messages if isinstance(one, dict) and "queue" in one}
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, partial(self._store, store, queues)
        )
        made = [{"id": message_id, "duplicate": duplicate} for message_id, duplicate in found]
        status = 200 if all(one["duplicate"] for one in made) else 201
        return JSONResponse(made[0] if alone else {"messages": made}, status, {"Cache-Control": "no-store"})

    def _store(
        self, store: Callable[[DeadlineConnection], list[tuple[int, bool]]], queues: set[str]
    ) -> list[tuple[int, bool]]:
        """In a thread. queues: of the messages."""
        with self._pool.connection() as connection:
            found = store(connection)
        self._wake(sorted(queues))
        return found

    def _wake(self, queues: list[str]) -> None:
        """By Redis, where producers publish. The messages are committed, and a worker that sleeps would find
        them with its next poll: what goes wrong here fails no request.
        """
        wakes = self._waking.new(self._settings)
        if wakes is None:
            return
        with suppress(StoreError):
            with self._pool.connection() as connection:
                wakes |= wake_channels(connection, queues)
            self._waking.publish(self._settings, wakes)


def _token(request: Request) -> str:
    given = request.headers.getlist("authorization")
    found = _BEARER.fullmatch(given[0].strip()) if len(given) == 1 else None
    if found is None:
        raise ApiProblem(
            401,
            "No token",
            "Authorization: must be `Bearer` and a token",
            field="Authorization",
            hint="packhorse token create NAME --role producer --queue QUEUE makes one.",
            headers={"WWW-Authenticate": "Bearer"},
        )
    return found[1]


async def _body(request: Request) -> str:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiProblem(415, "No JSON", "Content-Type: must be application/json", field="Content-Type")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise ApiProblem(
                413,
                "Too large",
                f"The body has more than {MOST_BODY_BYTES} bytes.",
                hint="Send fewer messages at a time; keep large things elsewhere.",
                headers={"Connection": "close"},
            )
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise ApiProblem(400, "No JSON", "The body is not UTF-8.") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        said = "too deep" if isinstance(error, RecursionError) else str(error)[:200]
        raise ApiProblem(400, "No JSON", f"The body cannot be read as JSON: {said}") from None


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _key(request: Request, messages: list[Any]) -> str | None:
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    if len(given) > 1 or not _KEY.fullmatch(given[0]):
        raise ApiProblem(
            400,
            "Bad key",
            "Idempotency-Key: must be 1 to 200 visible ASCII characters",
            field="Idempotency-Key",
        )
    if any(isinstance(one, dict) and one.get("dedup_key") is not None for one in messages):
        raise ApiProblem(
            400,
            "Two keys",
            "Idempotency-Key: give this header or dedup_key, not both",
            field="Idempotency-Key",
        )
    return given[0]


def _problem_of(error: StoreError) -> ApiProblem:
    if isinstance(error, InvalidArgument):
        status = {"token": 401, "token.queues": 403}.get(error.field or "", 400)
        title = {401: "No such token", 403: "Not this queue", 400: "Not as it must be"}[status]
        detail = str(error).removesuffix(f". {error.hint}") if error.hint else str(error)
        headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        field, hint = error.field or "messages", error.hint
        if error.field is None:  # it is read before anybody looks at its parts
            hint = "jsonb takes neither \\u0000, nor half of a surrogate pair, nor a number beyond numeric."
        return ApiProblem(status, title, detail, field=field, hint=hint, headers=headers)
    if isinstance(error, StoreUnavailable | StoreConflict):
        return ApiProblem(
            503,
            "Try again",
            "The database does not answer, or is busy; whether the messages are there is not known.",
            hint="Send the same again, with the same Idempotency-Key.",
            headers={"Retry-After": "1"},
        )
    logger.error("web_request_failed path=%s", "/v1/messages", exc_info=error)
    return ApiProblem(500, "The database refuses this", "The log of the API says why.")
