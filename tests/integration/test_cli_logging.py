"""Log lines: our event templates become keys, other libraries' text stays text
(worker/observe/logging.py).
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
import structlog

from packhorse.worker.attempt.context import current
from packhorse.worker.observe.logging import catch_uncaught, configure
from tests.support.logs import logging_restored


@pytest.fixture
def lines():
    """Logging set up for JSON on a buffer; what was there before comes back. Call it for the lines so far."""
    stream = io.StringIO()
    with logging_restored():
        configure(log_format="json", stream=stream, context=lambda: {"message_id": 7, "actor": "a"})
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


ours = logging.getLogger("packhorse.test")


def test_event_and_keys_come_from_the_template_with_their_types(lines):
    ours.info("worker_started worker_id=%s pid=%d queues=%s drain_seconds=%.2f", "a b=c", 3, "x,y", 1.23456)
    (line,) = lines()
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "worker_started",
        "level": "info",
        "logger": "packhorse.test",
        "worker_id": "a b=c",
        "pid": 3,
        "queues": "x,y",
        "drain_seconds": 1.23,
        "message_id": 7,
        "actor": "a",
    }


@pytest.mark.parametrize(
    ("template", "arguments", "expected"),
    [
        (
            "database_unavailable error=%s: waiting for it",
            ("no: server",),
            {"error": "no: server", "note": "waiting for it"},
        ),
        (
            "child_killed pid=%d: it did not end within %.0f s",
            (4, 3.7),
            {"pid": 4, "note": "it did not end within 4 s"},
        ),
        ("hook_failed hook=before_%s", ("ack",), {"hook": "before_ack"}),
        ("config_error %s", ("threads: 100% wrong=yes",), {"note": "threads: 100% wrong=yes"}),
        ("message_failed correlation_id=%s", (None,), {"correlation_id": None}),
        ("plain_event", (), {}),
    ],
)
def test_every_shape_of_template_is_understood(lines, template, arguments, expected):
    ours.warning(template, *arguments)
    (line,) = lines()
    assert line["event"] == template.split(" ")[0]
    assert {key: line[key] for key in expected} == expected


def test_keys_of_the_record_win_over_those_of_the_running_message(lines):
    ours.info("lease_lost message_id=%s", 9)
    assert lines()[0]["message_id"] == 9


def test_text_of_other_libraries_stays_text_and_dramatiq_reports_only_warnings(lines):
    logging.getLogger("their.app").info("user x=%s said 100%%", "y")
    logging.getLogger("dramatiq.worker").info("chatter")
    logging.getLogger("dramatiq.worker").warning("worry")
    structlog.get_logger("own").info("own_event", answer=42)
    assert [line["event"] for line in lines()] == ["user x=y said 100%", "worry", "own_event"]
    assert lines()[2]["answer"] == 42


LATER = """
import logging, sys
from packhorse.worker.observe.logging import configure
configure(log_format="json")
logging.getLogger("their.app").warning("before %s", 1)
assert not {"structlog", "rich"} & sys.modules.keys()
import structlog
structlog.contextvars.bind_contextvars(customer="c")
structlog.get_logger("own").warning("own_event", answer=42)
try:
    1 / 0
except ZeroDivisionError:
    structlog.get_logger("own").exception("it_failed")
logging.getLogger("their.app").warning("after", extra={"more": 2})
"""


def test_what_structlog_logs_that_is_imported_later_ends_in_our_lines():
    ran = subprocess.run([sys.executable, "-c", LATER], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    before, own, failed, after = (json.loads(line) for line in ran.stderr.splitlines())
    assert (before["event"], before["level"], before["logger"]) == (
        "before 1",
        "warning",
        "their.app",
    ) and "customer" not in before
    assert own.pop("timestamp").endswith("Z")
    assert own == {"event": "own_event", "answer": 42, "level": "warning", "logger": "own", "customer": "c"}
    assert (failed["level"], failed["event"]) == ("error", "it_failed") and failed["exception"].endswith(
        "ZeroDivisionError: division by zero"
    )
    assert (after["event"], after["customer"], after["more"]) == ("after", "c", 2)


def test_a_traceback_is_one_key_of_one_line(lines):
    try:
        raise ValueError("two\nlines")
    except ValueError:
        logging.getLogger("their.app").exception("it failed")
    (line,) = lines()
    assert line["exception"].startswith("Traceback") and "ValueError: two\nlines" in line["exception"]


def test_a_traceback_of_our_own_lines_says_where_and_what_kind_but_repeats_no_text(lines):
    def deep(text):
        try:
            raise KeyError(text)
        except KeyError as cause:
            error = ExceptionGroup(text, [ValueError(text), ExceptionGroup(text, [TypeError(text)])])
            error.add_note(text)
            raise error from cause

    payload = "a payload"
    try:
        deep(payload)
    except ExceptionGroup:
        ours.critical("hook_failed hook=%s", "x", exc_info=True)
        ours.critical("child_failed pid=%d", 1, exc_info=True)
    hook, child = (line["exception"] for line in lines())
    assert "a payload" not in hook and "a payload" in child
    assert [
        name in hook
        for name in ("KeyError", "ExceptionGroup", "ValueError", "TypeError", "in deep", "direct cause")
    ] == [True] * 6


def test_what_python_would_print_itself_is_a_line(lines):
    class Leaving:
        def __del__(self):
            raise ValueError("a payload")

    before = threading.excepthook, sys.unraisablehook
    catch_uncaught()
    try:
        Leaving()
        thread = threading.Thread(target=int, args=("a payload",), name="a payload")
        thread.start()
        thread.join()
        warnings.warn("of +250788123456", stacklevel=1)
    finally:
        threading.excepthook, sys.unraisablehook = before
        logging.captureWarnings(False)
    ignored, failed, warned = lines()
    assert (ignored["event"], ignored["error_class"]) == (
        "exception_ignored",
        "ValueError",
    ) and "__del__" in ignored["exception"]
    assert (failed["event"], failed["thread"]) == ("thread_failed", None) and failed["exception"].endswith(
        "ValueError"
    )
    assert warned["logger"] == "py.warnings" and "+250788***456" in warned["event"]
    assert "payload" not in str(lines()).replace('ValueError("a payload")', "")


def test_a_disabled_level_formats_nothing(lines):
    class Explosive:
        def __str__(self):
            raise AssertionError("formatted although disabled")

    ours.debug("never_seen value=%s", Explosive())
    assert lines() == []


def test_console_lines_are_for_people(capsys):
    stream = io.StringIO()
    with logging_restored():
        configure(log_format="console", stream=stream)
        ours.info("worker_started pid=%d", 3)
    assert (
        "worker_started" in stream.getvalue()
        and "pid=3" in stream.getvalue()
        and not stream.getvalue().startswith("{")
    )


def test_what_a_handler_lets_slip_is_masked_in_values_exceptions_and_their_causes(lines):
    try:
        try:
            raise ValueError("no agent for +250788123456")
        except ValueError as cause:
            raise RuntimeError("ann@example.com: password=hunter2") from cause
    except RuntimeError:
        logging.getLogger("their.app").exception("it failed")
    logging.getLogger("their.app").warning("sent to %s with %s", "+250788123456", "Bearer abcdefghijkl")
    structlog.get_logger("own").info("own_event", to="+250788123456", api_key="k")
    text = str(lines())
    for hidden in ("250788123456", "ann@", "hunter2", "abcdefghijkl"):
        assert hidden not in text
    assert "+250788***456" in lines()[0]["exception"] and "a***@example.com" in lines()[0]["exception"]
    assert lines()[2]["api_key"] == "***"


def test_a_record_that_cannot_be_rendered_is_one_line_without_its_content(lines, capsys):
    (handler,) = [
        handler
        for handler in logging.getLogger().handlers
        if type(handler).__module__ == "packhorse.worker.observe.logging"
    ]
    handler.handle(
        logging.LogRecord("their.app", logging.WARNING, "", 0, "two %s %s", ("secret-value",), None)
    )
    assert lines()[-1]["event"] == "log_line_failed" and lines()[-1]["timestamp"].endswith("Z")
    assert "secret-value" not in capsys.readouterr().err


def test_a_coroutine_that_a_handler_runs_logs_its_correlation_id():
    async def handler():
        await asyncio.sleep(0)
        return current.message

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    message = SimpleNamespace(correlation_id="c")
    try:
        current.message = message
        assert asyncio.run_coroutine_threadsafe(handler(), loop).result(5) is message
        current.message = None
        assert asyncio.run_coroutine_threadsafe(handler(), loop).result(5) is None
    finally:
        current.message = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_extra_of_the_standard_library_reaches_the_line_masked_and_changes_no_key_of_ours(lines):
    shop = logging.getLogger("shop")
    shop.warning(
        "charged %s",
        "7",
        extra={"order": 17, "customer": {"phone": "+250788123456"}, "api_key": "s3cret-x", "items": [1, 2]},
    )
    taken = {
        "message_id": 8,
        "level": "none",
        "event": "other",
        "logger": "l",
        "timestamp": "t",
        "exception": "e",
    }
    shop.warning("again", extra=taken)
    shop.warning("plain")
    first, second, third = lines()
    assert (first["event"], first["order"], first["items"]) == ("charged 7", 17, [1, 2])
    assert (first["customer"], first["api_key"]) == ({"phone": "+250788***456"}, "***")
    assert (second["message_id"], second["level"], second["event"], second["logger"]) == (
        7,
        "warning",
        "again",
        "shop",
    )
    assert second["timestamp"].endswith("Z") and "exception" not in second
    assert {name: second[f"extra_{name}"] for name in taken} == taken
    assert third.keys() == {"event", "level", "logger", "timestamp", "message_id", "actor"}


def test_a_key_that_an_error_has_is_not_taken_by_extra(lines):
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("shop").exception("failed", extra={"exception": "mine"})
    (line,) = lines()
    assert "ValueError: broken" in line["exception"] and line["extra_exception"] == "mine"
