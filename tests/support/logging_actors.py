"""An application that sets up logging of its own: at import as LOGGING_AT_IMPORT says, later as a message
says.
"""

from __future__ import annotations

import io
import logging
import logging.config
import os
import sys
from pathlib import Path

import dramatiq
import structlog

OWN = str(Path(os.environ["LEDGER"]).with_suffix(".own.log"))


def _dict_config(**more: object) -> None:
    plain = {"class": "logging.FileHandler", "filename": OWN, "formatter": "own"}
    logging.config.dictConfig(
        {
            "version": 1,
            "formatters": {"own": {"format": "OWN %(name)s %(message)s"}},
            "handlers": {"own": plain},
            "root": {"handlers": ["own"], "level": "INFO"},
            **more,
        }
    )


def _file_config() -> None:
    text = f"""[loggers]
keys=root
[handlers]
keys=own
[formatters]
keys=own
[logger_root]
level=INFO
handlers=own
[handler_own]
class=FileHandler
formatter=own
args=({OWN!r},)
[formatter_own]
format=OWN %(name)s %(message)s
"""
    logging.config.fileConfig(io.StringIO(text))


def _basic_config() -> None:
    logging.basicConfig(force=True, filename=OWN, format="OWN %(name)s %(message)s", level=logging.INFO)


def _change_handlers() -> None:
    for handler in logging.getLogger().handlers:
        handler.setLevel(logging.CRITICAL)
        handler.setFormatter(logging.Formatter("OWN %(message)s"))
        handler.addFilter(lambda record: False)


def _every_logger(change: object) -> None:
    for name in list(logging.Logger.manager.loggerDict):
        change(logging.getLogger(name))  # type: ignore[operator]


def _failing_record_factory() -> None:
    def fail(*args: object, **kwargs: object) -> logging.LogRecord:
        raise LookupError("no request here")

    logging.setLogRecordFactory(fail)


class _Broken(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise RuntimeError("the log service is away")


def _broken_handler() -> None:
    logging.getLogger("packhorse").addHandler(_Broken())


def _structlog() -> None:
    structlog.configure(
        processors=[structlog.processors.KeyValueRenderer()],
        logger_factory=structlog.PrintLoggerFactory(io.StringIO()),
    )


def _stderr() -> None:
    sys.stderr = io.StringIO()


HOW = {
    "dictConfig": _dict_config,
    "dictConfig of packhorse": lambda: _dict_config(
        loggers={"packhorse": {"handlers": ["own"], "level": "CRITICAL", "propagate": True}}
    ),
    "fileConfig": _file_config,
    "basicConfig": _basic_config,
    "root handlers removed": lambda: logging.getLogger().handlers.clear(),
    "root handlers changed": _change_handlers,
    "root level": lambda: logging.getLogger().setLevel(logging.CRITICAL),
    "logging.disable": lambda: logging.disable(logging.CRITICAL),
    "logging.shutdown": logging.shutdown,
    "every logger disabled": lambda: _every_logger(lambda logger: setattr(logger, "disabled", True)),
    "every level raised": lambda: _every_logger(lambda logger: logger.setLevel(logging.CRITICAL)),
    "every handler removed": lambda: _every_logger(lambda logger: logger.handlers.clear()),
    "every logger filtered": lambda: _every_logger(lambda logger: logger.addFilter(lambda record: False)),
    "a failing record factory": _failing_record_factory,
    "a broken handler": _broken_handler,
    "structlog": _structlog,
    "another stderr": _stderr,
    "nothing": lambda: None,
}

HOW[os.environ.get("LOGGING_AT_IMPORT", "nothing")]()


@dramatiq.actor(queue_name="default", actor_name="sets_up_logging")
def sets_up_logging(how: str) -> None:
    HOW[how]()


@dramatiq.actor(queue_name="default", actor_name="speaks")
def speaks(text: str) -> None:
    logging.getLogger("their.app").warning("said %s", text)


@dramatiq.actor(queue_name="default", actor_name="boom", max_retries=0)
def boom(key: str) -> None:
    raise ValueError(key)
