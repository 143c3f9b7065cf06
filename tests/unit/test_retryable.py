"""Can another attempt help? (worker/calls/retryable.py, PLATFORM 8)"""

from __future__ import annotations

import errno
import socket
import subprocess
import urllib.error
from types import SimpleNamespace

import dramatiq.rate_limits
import httpx
import psycopg
import pytest

from packhorse import (
    AgentError,
    Bury,
    Cancel,
    MessageProcessingError,
    Retry,
    Snooze,
    StoreError,
    StoreUnavailable,
    WorkflowError,
)
from packhorse.calls import CircuitOpen, ServiceFailed, is_retryable_error
from packhorse.worker.calls.requests import AnswerTooLong


def error(name: str = "Failed", bases: tuple[type, ...] = (Exception,), **attributes: object) -> Exception:
    """An error of somebody's library."""
    made = type(name, bases, {})("no")
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def caused(outer: Exception, by: BaseException) -> Exception:
    outer.__cause__ = by
    return outer


RETRYABLE = {
    "timeout": TimeoutError(),
    "socket timeout": TimeoutError(errno.ETIMEDOUT, "timed out"),
    "refused": ConnectionRefusedError(),
    "reset": ConnectionResetError(),
    "broken pipe": BrokenPipeError(),
    "unreachable": OSError(errno.ENETUNREACH, "no route"),
    "name not found": socket.gaierror(socket.EAI_NONAME, "Name or service not known"),
    "urllib": urllib.error.URLError(ConnectionRefusedError()),
    "urllib 503": urllib.error.HTTPError("http://x", 503, "no", {}, None),  # type: ignore[arg-type]
    "subprocess": subprocess.TimeoutExpired("x", 1),
    "httpx": error("ReadTimeout", (type("TimeoutException", (Exception,), {}),)),
    "requests": error("ConnectTimeout", (OSError,)),
    "aiohttp": error("ServerDisconnectedError"),
    "429": error(status_code=429),
    "503": error(status=503),
    "504 of a response": error(response=SimpleNamespace(status_code=504)),
    "429 of a response": error(response=SimpleNamespace(status=429)),
    "driver": psycopg.OperationalError("server closed the connection"),
    "deadlock": psycopg.errors.DeadlockDetected(),
    "ours": StoreUnavailable("away"),
    "rate limiter of dramatiq": dramatiq.rate_limits.RateLimitExceeded("x"),
    "says so": error(retryable=True),
    "says so in spite of its status": error(retryable=True, status_code=400),
    "cause": caused(ValueError("no answer"), TimeoutError()),
    "group": ExceptionGroup("both", [TimeoutError(), ConnectionResetError()]),
    "ours by default": WorkflowError("x"),
    "an agent": AgentError("x", agent_type="support"),
    "snooze": Snooze(1),
    "retry": Retry(),
}
OTHERS = {
    "value": ValueError("x"),
    "key": KeyError("x"),
    "odd errno": OSError([errno.ETIMEDOUT], "x"),
    "file": FileNotFoundError(errno.ENOENT, "x"),
    "permission": PermissionError(errno.EACCES, "x"),
    "400": error(status_code=400),
    "500": error(status_code=500),
    "404 of a response": error(response=SimpleNamespace(status_code=404)),
    "a timeout that is a 400": error("TimeoutConfigurationError", status_code=400),
    "no status": error(status_code=True, status="503", response=None),
    "urllib 404": urllib.error.HTTPError("http://x", 404, "no", {}, None),  # type: ignore[arg-type]
    "constraint": psycopg.errors.UniqueViolation(),
    "ours": StoreError("refused"),
    "says no": error("ReadTimeout", retryable=False),
    "not recoverable": error(recoverable=False, retryable=True),
    "WorkflowError": WorkflowError("x", retryable=False),
    "WorkflowError not recoverable": WorkflowError("x", recoverable=False),
    "AgentError not recoverable": AgentError("x", recoverable=False),
    "should_retry": MessageProcessingError("x", should_retry=False),
    "cause says no": caused(ValueError(), WorkflowError("x", retryable=False)),
    "group": ExceptionGroup("both", [TimeoutError(), ValueError()]),
    "bury": Bury(),
    "cancel": Cancel(),
}


@pytest.mark.parametrize("raised", RETRYABLE.values(), ids=RETRYABLE)
def test_these_may_work_later(raised):
    assert is_retryable_error(raised) is True


@pytest.mark.parametrize("raised", OTHERS.values(), ids=OTHERS)
def test_these_fail_again(raised):
    assert is_retryable_error(raised) is False


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        *(
            (kind("x"), True)
            for kind in (
                httpx.ConnectError,
                httpx.ReadTimeout,
                httpx.PoolTimeout,
                httpx.ReadError,
                httpx.RemoteProtocolError,
            )
        ),
        *(
            (kind("x"), False)
            for kind in (
                httpx.LocalProtocolError,
                httpx.UnsupportedProtocol,
                httpx.TooManyRedirects,
                httpx.DecodingError,
            )
        ),
        (httpx.InvalidURL("x"), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_httpx(raised, expected):
    assert is_retryable_error(raised) is expected


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503, 504])
def test_statuses_of_httpx(status):
    with pytest.raises(httpx.HTTPStatusError) as raised:
        httpx.Response(status, request=httpx.Request("GET", "http://x")).raise_for_status()
    assert is_retryable_error(raised.value) is (status in {429, 503, 504})


@pytest.mark.parametrize(
    ("status", "expected"),
    [(None, True), (429, True), (500, True), (502, True), (503, True), (400, False), (404, False)],
)
def test_a_service_that_failed(status, expected):
    assert is_retryable_error(ServiceFailed("x", service="openai", status_code=status)) is expected
    assert is_retryable_error(AnswerTooLong("x", service="openai", status_code=status)) is False
    assert is_retryable_error(CircuitOpen("openai", 5)) is True


def test_an_error_whose_attributes_raise_is_judged_all_the_same():
    class Odd(Exception):
        @property
        def status_code(self):
            raise RuntimeError

        response = retryable = status = reason = status_code

    assert is_retryable_error(Odd()) is False


def test_a_chain_that_ends_in_itself_has_an_end():
    first, second = ValueError(), KeyError()
    first.__cause__, second.__cause__ = second, first
    assert is_retryable_error(first) is False


def test_a_class_may_say_it_for_all_of_its_errors():
    class Closed(WorkflowError):
        code = "ACCOUNT_CLOSED"
        retryable = False

    raised = Closed("x")
    assert (raised.retryable, raised.recoverable, raised.code) == (False, True, "ACCOUNT_CLOSED")
    assert is_retryable_error(raised) is False


def test_the_classes_take_what_the_contract_says():
    plain = WorkflowError("m", "C", {"a": 1}, False, False)
    assert (str(plain), plain.code, plain.context, plain.recoverable, plain.retryable) == (
        "m",
        "C",
        {"a": 1},
        False,
        False,
    )
    assert (AgentError("m").code, AgentError("m", agent_type="sales").agent_type) == ("AGENT_ERROR", "sales")
    processing = MessageProcessingError("m", message_id="wamid.1", should_retry=False)
    assert (processing.code, processing.message_id, processing.should_retry, processing.retryable) == (
        "MESSAGE_PROCESSING_ERROR",
        "wamid.1",
        False,
        False,
    )
    assert MessageProcessingError("m", retryable=False).should_retry is False
    assert WorkflowError("m").context == {} and WorkflowError("m").code == "WORKFLOW_ERROR"
