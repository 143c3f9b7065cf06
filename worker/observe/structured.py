"""structlog, when an application uses it: what it logs ends in our lines, and its bound values stand in them.

Our own lines do not need it. It is loaded by whoever imports it first, or by the console: with rich, which it
looks for, it would be 6 MiB in each process tree.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, MutableMapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import structlog

EventDict = MutableMapping[str, Any]
Processor = Callable[[Any, str, Any], Any]
NAME = "structlog"


def merge_bound(logger: Any, method: str, event: EventDict) -> EventDict:
    """A processor that adds the values that are bound in this context; none are when nobody has imported
    structlog.
    """
    merge = getattr(sys.modules.get(f"{NAME}.contextvars"), "merge_contextvars", None)
    return event if merge is None else merge(logger, method, event)


def console_renderer(*, colors: bool) -> Processor:
    """Lines for people."""
    import structlog

    return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=structlog.dev.plain_traceback)


def formatter(final: Sequence[Processor]) -> structlog.stdlib.ProcessorFormatter:
    """For records that structlog's loggers have made."""
    import structlog

    return structlog.stdlib.ProcessorFormatter(
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final]
    )


def configure(before: Sequence[Processor], after: Sequence[Processor]) -> None:
    """Let structlog's loggers end in the handlers of the standard library. before, after: what stands around
    level, name and time of an event.
    """
    import structlog

    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            merge_bound,
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            *before,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *after,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class _Import(MetaPathFinder):
    """Calls `then` when structlog has been imported, before its importer goes on."""

    then: Callable[[], None] | None = None

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != NAME or self.then is None:
            return None
        then, self.then = self.then, None  # found from here on by those who come after us
        spec = importlib.util.find_spec(name)
        loader = spec.loader if spec is not None else None
        if loader is not None:
            execute = loader.exec_module

            def executed(module: ModuleType) -> None:
                execute(module)
                then()

            loader.exec_module = executed  # type: ignore[method-assign]
        return spec


_import = _Import()


def when_imported(then: Callable[[], None]) -> None:
    """Call `then` as soon as structlog is there: now, or at the end of its import. The last one who asks is
    heard.
    """
    if NAME in sys.modules:
        then()
        return
    _import.then = then
    if _import not in sys.meta_path:
        sys.meta_path.insert(0, _import)
