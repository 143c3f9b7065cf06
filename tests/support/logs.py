"""Logging of this process as it was, after a test that sets it up."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from packhorse.worker.observe import tracebacks
from packhorse.worker.observe.logging import OUR_LOGGERS, OurLogger


@contextmanager
def logging_restored() -> Iterator[None]:
    """Root, our loggers and structlog come back at the end."""
    root, ours = logging.getLogger(), logging.getLogger(OUR_LOGGERS)
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in (root, ours)]
    disabled, factory = root.manager.disable, logging.getLogRecordFactory()
    lines, least = OurLogger.lines, OurLogger.least
    on_console = tracebacks.on_console
    try:
        yield
    finally:
        for logger, handlers, level, propagate in before:
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)
        OurLogger.lines, OurLogger.least = lines, least
        tracebacks.on_console = on_console
        logging.disable(disabled)
        logging.setLogRecordFactory(factory)
        structlog.reset_defaults()
