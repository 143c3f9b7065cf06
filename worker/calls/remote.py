"""A service to call: `with service.call() as endpoint` around any client, and `service.request(…)` (SPEC
W10).

A call is one passage through the breaker of one endpoint. It ends as a success, as a failure, or as neither:
what says nothing about the service (the caller's own mistake, an interrupt of ours) is not counted.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Unpack

from packhorse.worker.attempt.middleware.time_limits import TimeLimitExceeded
from packhorse.worker.calls.breakers import OWN_PROBE, Breaker, ServiceBreakers
from packhorse.worker.calls.declarations import ServiceDeclaration
from packhorse.worker.calls.health import check_all
from packhorse.worker.calls.http import HttpClients
from packhorse.worker.calls.reports import BreakerReports, EndedProbe
from packhorse.worker.calls.requests import BadAnswer, HttpRequest, RequestOptions, ServiceResponse, prepare
from packhorse.worker.errors import (
    AskedOutcome,
    CircuitOpen,
    ConfigError,
    InvalidArgument,
    RetryAfter,
    ServiceFailed,
    StoreError,
)

#: A message that a gate holds as long as the circuit is open comes back after this at most.
GATED_SECONDS = 0.25
#: Mistakes of the code that calls: they say nothing about the service.
OWN_MISTAKES = (
    TypeError,
    AttributeError,
    NameError,
    LookupError,
    AssertionError,
    NotImplementedError,
    ImportError,
    AskedOutcome,
    ConfigError,
    InvalidArgument,
    StoreError,
)


class Home(Protocol):
    """What a service needs of its registry."""

    @property
    def away(self) -> bool: ...
    @property
    def reports(self) -> BreakerReports | None: ...

    started: bool

    def start(self) -> None: ...
    def begin_probe(self, service: RemoteService, endpoint: str) -> int | None: ...
    def end_probe(self, probe: EndedProbe) -> None: ...
    def inside_handler(self) -> bool: ...
    def gated(self, service: str) -> bool: ...


def verdict(error: BaseException) -> bool | None:
    """What an exception says of the service: True, it works (an answer of 4xx but 408 and 429), False, it
    failed, None, nothing.
    """
    if not isinstance(error, Exception):
        # a handler that waits for a service until its time limit
        return False if isinstance(error, TimeLimitExceeded) else None
    if isinstance(error, OWN_MISTAKES):
        return None
    status = getattr(error, "status_code", None)
    if status is None:
        status = getattr(getattr(error, "response", None), "status_code", None)
    return isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)


class ServiceCall:
    """One call, for `with` and `async with`; the endpoint is its value. Used once.

    A failure while the breaker opens, or as its probe, leaves a handler as CircuitOpen, whose cause it is: no
    attempt is spent on it.
    """

    __slots__ = ("_epoch", "_is_failure", "_service", "_token", "_without", "breaker", "entered")

    def __init__(
        self,
        service: RemoteService,
        is_failure: Callable[[BaseException], bool] | None,
        without: Sequence[Breaker] = (),
    ) -> None:
        self._service = service
        self._is_failure = is_failure
        self._without = without
        self._token: int | None = None
        self._epoch = 0
        self.entered = False
        self.breaker: Breaker

    def __enter__(self) -> str:
        service = self._service
        if not service.home.started:
            service.home.start()
        for breaker in service.breakers.to_probe(self._without):
            if self._may_probe(breaker, service.begin_probe(breaker)):
                return breaker.endpoint
        found = service.breakers.ready(self._without)
        if found is None:
            found = service.first_that_answers(self._without)
        return self._take(found)

    async def __aenter__(self) -> str:
        service = self._service
        if not service.home.started:
            await asyncio.to_thread(service.home.start)
        for breaker in service.breakers.to_probe(self._without):
            if self._may_probe(breaker, await asyncio.to_thread(service.begin_probe, breaker)):
                return breaker.endpoint
        found = service.breakers.ready(self._without)
        if found is None:
            found = await asyncio.to_thread(service.first_that_answers, self._without)
        return self._take(found)

    def _may_probe(self, breaker: Breaker, token: int | None) -> bool:
        if token is None:
            return False
        self.breaker, self.entered = breaker, True
        self._token = token or None
        self._epoch = breaker.epoch
        return True

    def _take(self, breaker: Breaker) -> str:
        self.breaker, self.entered = breaker, True
        self._epoch = breaker.epoch
        return breaker.endpoint

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: TracebackType | None) -> None:
        succeeded = True if error is None else self._verdict(error)
        if self._token is not None:
            self._service.end_probe(self.breaker, self._token, succeeded)
        self._end(error, succeeded)

    async def __aexit__(
        self, _kind: object, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        succeeded = True if error is None else self._verdict(error)
        if self._token is not None:
            await asyncio.to_thread(self._service.end_probe, self.breaker, self._token, succeeded)
        self._end(error, succeeded)

    def _end(self, error: BaseException | None, succeeded: bool | None) -> None:
        if self._token is None and succeeded is not None:
            self._service.breakers.record(self.breaker, self._epoch, succeeded)
        if succeeded is False and isinstance(error, Exception) and self.spends_no_attempt:
            raise self._service.refusal() from error

    @property
    def spends_no_attempt(self) -> bool:
        """A failure of this call is no fault of the message that a handler runs here."""
        return (self._token is not None or not self.breaker.closed) and self._service.home.inside_handler()

    def _verdict(self, error: BaseException) -> bool | None:
        judge = self._is_failure or self._service.declaration.is_failure
        if judge is not None and isinstance(error, Exception) and not isinstance(error, AskedOutcome):
            return False if judge(error) else None
        return verdict(error)


class _Exchange:
    """One request over all its tries: which endpoints have failed, and what is done next."""

    def __init__(self, service: RemoteService, request: HttpRequest) -> None:
        self.request = request
        self._service = service
        self._failed: list[Breaker] = []
        self._retries = 0
        self._call: ServiceCall | None = None

    def call(self) -> ServiceCall:
        self._call = ServiceCall(self._service, None, self._failed)
        return self._call

    def answered(self, response: ServiceResponse) -> ServiceResponse:
        """Raises ServiceFailed for a status of 400 and more, when it is to be checked. It does not count: the
        request is to blame.
        """
        if response.status_code >= 400 and self.request.check:
            raise BadAnswer(self._service.name, response)
        return response

    def after(self, error: ServiceFailed | CircuitOpen) -> float | ServiceResponse:
        """Seconds until the next try, or the answer after all; raises when there is neither."""
        failure = error if isinstance(error, ServiceFailed) else error.__cause__
        if not isinstance(failure, ServiceFailed) or self._call is None or not self._call.entered:
            raise error
        if (
            isinstance(failure, BadAnswer)
            and failure.response.status_code < 500
            and failure.response.status_code != 429
        ):
            raise error
        self._failed.append(self._call.breaker)
        if self.request.may_go_elsewhere(failure):
            if self._service.breakers.ready(self._failed) is not None:
                return 0.0
            policy = self._service.declaration.retry_policy
            if policy is not None and self._retries < policy.max_retries:
                self._retries += 1
                self._failed.clear()
                return float(policy.backoff_ms * 2 ** (self._retries - 1)) / 1000
        if (
            failure.status_code == 429
            and failure.retry_after is not None
            and self.request.retry_after
            and self._service.home.inside_handler()
        ):
            raise RetryAfter(failure.retry_after, scope=self._service.name, reason=str(failure)) from failure
        if isinstance(failure, BadAnswer) and not self.request.check:
            return failure.response
        raise error


class RemoteService:
    """A declared service. Any thread, any event loop."""

    def __init__(self, declaration: ServiceDeclaration, breakers: ServiceBreakers, home: Home) -> None:
        self.declaration = declaration
        self.breakers = breakers
        self.home = home
        self._clients = HttpClients(declaration)

    def __repr__(self) -> str:
        return f"<RemoteService {self.name}>"

    @property
    def name(self) -> str:
        return self.declaration.name

    def call(self, is_failure: Callable[[BaseException], bool] | None = None) -> ServiceCall:
        """`with service.call() as endpoint:` (or `async with`) around a call by any client; endpoint: the
        text to call.

        is_failure: does this exception speak against the service? None: what the service declares, else
        everything but answers of 4xx, mistakes of the calling code and interrupts. Entering raises
        CircuitOpen, or ServiceFailed when no endpoint is healthy.
        """
        return ServiceCall(self, is_failure)

    def request(self, method: str, path: str = "", **options: Unpack[RequestOptions]) -> ServiceResponse:
        """One HTTP request to an endpoint of the service. method: GET, POST …; path: what comes behind the
        endpoint's URL. options: see RequestOptions. Needs the extra `http`.

        When an endpoint cannot be reached the next one is asked; after other failures only for GET, HEAD,
        OPTIONS, PUT and DELETE. Inside a handler a 429 with Retry-After is raised as RetryAfter, with the
        service as its scope, unless retry_after=False. Raises CircuitOpen, ServiceFailed (no answer, not in
        time, too long, a status of 400 and more unless check=False), InvalidArgument, ConfigError without
        httpx.
        """
        exchange = _Exchange(self, prepare(self.declaration, method, path, options))
        while True:
            try:
                with exchange.call() as endpoint:
                    response = self._clients.send(endpoint, exchange.request)
                return exchange.answered(response)
            except (ServiceFailed, CircuitOpen) as error:
                again = exchange.after(error)
                if not isinstance(again, float):
                    return again
                time.sleep(again)

    async def request_async(
        self, method: str, path: str = "", **options: Unpack[RequestOptions]
    ) -> ServiceResponse:
        """As `request`, awaited."""
        exchange = _Exchange(self, prepare(self.declaration, method, path, options))
        while True:
            try:
                async with exchange.call() as endpoint:
                    response = await self._clients.send_async(endpoint, exchange.request)
                return exchange.answered(response)
            except (ServiceFailed, CircuitOpen) as error:
                again = exchange.after(error)
                if not isinstance(again, float):
                    return again
                await asyncio.sleep(again)

    def discover(self) -> str:
        """An endpoint to call, without a call. Raises CircuitOpen, ServiceFailed."""
        if not self.home.started:
            self.home.start()
        found = self.breakers.ready()
        return (found if found is not None else self.first_that_answers(())).endpoint

    # -- for calls --------------------------------------------------------------------------------------
    def begin_probe(self, breaker: Breaker) -> int | None:
        """The token of a probe, None when it is not to be, 0 when the breaker is closed."""
        if self.home.away:
            return self.breakers.begin_own_probe(breaker)
        token = self.home.begin_probe(self, breaker.endpoint)
        if token == 0:
            self.breakers.found(breaker, "closed")
        elif token is not None:
            self.breakers.probe_began(breaker)
        elif self.home.reports is not None:
            self.home.reports.wake()  # what this process knows is old
        return token

    def end_probe(self, breaker: Breaker, token: int, succeeded: bool | None) -> None:
        """How a probe went; waits for the database."""
        if token == OWN_PROBE:
            self.breakers.end_own_probe(breaker, succeeded)
        else:
            self.home.end_probe(EndedProbe(self.breakers, breaker, token, succeeded))

    def first_that_answers(self, without: Sequence[Breaker]) -> Breaker:
        """None is healthy: those whose breaker is closed are asked now. Raises CircuitOpen when there is
        none, ServiceFailed when none answers.
        """
        unhealthy = self.breakers.unhealthy(without)
        if not unhealthy:
            raise self.refusal()
        errors = check_all(
            [self.declaration.health_url(breaker.endpoint) or breaker.endpoint for breaker in unhealthy]
        )
        for breaker, error in zip(unhealthy, errors, strict=True):
            if error is None:
                return breaker
        for breaker in unhealthy:
            self.breakers.record(breaker, breaker.epoch, False)
        if self.home.inside_handler() and not any(breaker.closed for breaker in unhealthy):
            raise self.refusal()
        raise ServiceFailed(
            f"no endpoint of the service {self.name} is healthy: {errors[0]}",
            service=self.name,
            endpoint=unhealthy[0].endpoint,
        )

    def refusal(self) -> CircuitOpen:
        """What a call gets that is not to be made. A message whose actor names the service need not wait long
        by itself: its scope is parked.
        """
        seconds = self.breakers.wait_seconds()
        return CircuitOpen(self.name, min(seconds, GATED_SECONDS) if self.home.gated(self.name) else seconds)

    def after_fork(self) -> None:
        """In a forked child: the connections are its parent's, and nobody else holds a lock."""
        self._clients = HttpClients(self.declaration)
        self.breakers.after_fork()

    def close(self) -> None:
        """Close connections that are kept open; they open again when needed."""
        self._clients.close()
