"""Repeats of one event are counted instead of written (worker/observe/repeats.py)."""

from __future__ import annotations

import logging

import pytest

from packhorse.worker.observe.repeats import MOST, TEMPLATES, WINDOW_SECONDS, Repeats


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def written(clock):
    """What a handler behind the filter gets; loggers below `packhorse` end there and nowhere else."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    handler.repeats = Repeats(clock)
    handler.addFilter(handler.repeats)
    logger = logging.getLogger("packhorse")
    logger.addHandler(handler)
    before, logger.propagate, logger.level = (logger.propagate, logger.level), False, logging.DEBUG
    lines_of = lambda: lines  # noqa: E731
    lines_of.flush = handler.repeats.flush
    yield lines_of
    logger.removeHandler(handler)
    logger.propagate, logger.level = before


ours = logging.getLogger("packhorse.test")


def test_a_repeated_event_is_written_a_bounded_number_of_times_and_then_counted(written, clock):
    for number in range(MOST + 30):
        ours.info("message_failed message_id=%s", number)
    assert len(written()) == MOST
    clock.now += WINDOW_SECONDS + 1
    ours.info("something_else")
    assert written()[MOST:] == [
        "repeats_suppressed of=message_failed by=packhorse.test count=30",
        "something_else",
    ]
    ours.info("message_failed message_id=%s", "again")
    assert written()[-1].endswith("again"), "a new window begins"


def test_other_events_and_other_loggers_are_not_held_back(written):
    for number in range(MOST * 2):
        ours.info("message_failed message_id=%s", number)
    ours.info("worker_stopped")
    logging.getLogger("packhorse.other").info("message_failed message_id=%s", 1)
    assert len(written()) == MOST + 2


def test_critical_lines_are_held_back_as_well(written):
    """A middleware that fails for each message is one piece of news."""
    for _ in range(MOST * 2):
        ours.critical("hook_failed hook=%s", "after_ack")
    assert len(written()) == MOST


def test_a_finalizer_that_logs_while_a_line_is_filtered_does_not_stop_its_thread(written, clock):
    """Garbage collection may run anywhere, also while the lock is held."""

    class Moment(float):
        logged = False

        def __lt__(self, other):
            if not Moment.logged:
                Moment.logged = True
                ours.info("logged_inside")
            return float(self) < other

    clock.now = Moment(clock.now)
    ours.info("logged_outside")
    assert sorted(written()) == ["logged_inside", "logged_outside"]


def test_what_was_left_out_is_said_at_the_end(written):
    for _ in range(MOST + 1):
        ours.info("service_failed")
    written.flush()
    written.flush()
    assert written()[MOST:] == ["repeats_suppressed of=service_failed by=packhorse.test count=1"]


def test_templates_are_bounded(written):
    for number in range(TEMPLATES + MOST + 100):
        ours.info("x_%d" % number)
    assert len(written()) == TEMPLATES + MOST
