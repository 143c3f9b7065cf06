"""OpenTelemetry spans, and the W3C text that leads from a producer to its consumer (SPEC O3); off unless
asked for.

The one home of opentelemetry, which is imported by `switch_on` and by nothing else: who does not trace needs
no package and pays for one comparison per enqueue, nothing per message handled. Only the API is used; which
SDK, sampler and exporter is the application's choice. Names, numbers and masked errors go into spans;
payloads, conversation keys and correlation ids never do, nor does baggage go into a message: it may hold
anything.

The surprising rule: a `process` span begins a trace of its own and links to the producer's. A message may run
days after it was sent, and several times; as children those attempts would stretch and multiply one trace.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packhorse.worker.config import TRACING_NEEDS
from packhorse.worker.errors import ConfigError
from packhorse.worker.observe.masking import mask
from packhorse.worker.version import __version__

if TYPE_CHECKING:
    from opentelemetry.trace import Span

logger = logging.getLogger("packhorse.tracing")

SYSTEM = "packhorse"
#: A longer tracestate is left out, when written and when read (the W3C asks for 512).
MAX_TRACESTATE = 512
#: At a drain, for spans that the SDK has not exported yet. An unreachable collector costs this and no more.
FLUSH_SECONDS = 3.0

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(?:-[!-~]{0,100})?")
_MEMBER = r"[a-z0-9][a-z0-9_\-*/@]{0,255}=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,256}"
_TRACESTATE = re.compile(rf"{_MEMBER}(?:,{_MEMBER}){{0,31}}")


@dataclass(frozen=True, slots=True)
class Failure:
    """What a span says about the exception of an attempt; texts are masked here, not by the caller."""

    error_class: str
    message: str
    stacktrace: str | None


@dataclass(slots=True)
class Processing:
    """A `process` span and the token that makes it the thread's current one no longer."""

    span: Span
    token: Any = None


class Tracer:
    """The spans of this process. Thread-safe: everything that changes belongs to OpenTelemetry's own context.

    Raises ConfigError without the package.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, trace
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise ConfigError([f"tracing: {TRACING_NEEDS}"]) from error
        self._trace = trace
        self._context = context
        self._w3c = TraceContextTextMapPropagator()
        self._tracer = trace.get_tracer("packhorse", __version__)
        self._failed = trace.Status(trace.StatusCode.ERROR)

    # -- producers -----------------------------------------------------------------------------------
    def current_text(self) -> str | None:
        """The current span for message_queue.trace_context: `traceparent`, or `traceparent tracestate`; None
        without a span.
        """
        carrier: dict[str, str] = {}
        self._w3c.inject(carrier)
        parent, state = carrier.get("traceparent"), carrier.get("tracestate")
        return f"{parent} {state}" if parent and state and len(state) <= MAX_TRACESTATE else parent

    def stamp(self, extra: dict[str, Any]) -> None:
        """Add the current span to the columns of a message that has no trace_context."""
        if "trace_context" not in extra:
            text = self.current_text()
            if text is not None:
                extra["trace_context"] = text

    @contextmanager
    def sending(self, queues: Collection[str], count: int | None = None) -> Iterator[Callable[[int], None]]:
        """A span `send <queue>` that is current inside; call what it yields with the id of the message.

        queues: of more than one none is named. count: messages of a bulk enqueue. Whatever fails
        about the span is logged; the enqueue goes on.
        """
        attributes: dict[str, str | int] = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "send",
            "messaging.operation.type": "send",
        }
        name = "send"
        if len(queues) == 1:
            attributes["messaging.destination.name"] = queue = next(iter(queues))
            name = f"send {queue}"
        if count is not None:
            attributes["messaging.batch.message_count"] = count
        try:
            span = self._tracer.start_span(name, kind=self._trace.SpanKind.PRODUCER, attributes=attributes)
        except Exception as error:  # a sampler or processor of the application
            logger.warning("tracing_failed error_class=%s", type(error).__name__)
            span = self._trace.NonRecordingSpan(self._trace.get_current_span().get_span_context())
        token = self._context.attach(self._trace.set_span_in_context(span))
        try:
            yield lambda message_id: span.set_attribute("messaging.message.id", str(message_id))
        except BaseException as error:
            # no text: it is the caller's exception, and refusals quote values
            span.set_attribute("error.type", type(error).__name__)
            span.set_status(self._failed)
            raise
        finally:
            self._context.detach(token)
            try:
                span.end()
            except Exception as error:
                logger.warning("tracing_failed error_class=%s", type(error).__name__)

    # -- consumers -----------------------------------------------------------------------------------
    def begin(
        self, queue: str, message_id: int, attributes: dict[str, str | int], trace_context: str | None
    ) -> Processing:
        """Start a span `process <queue>`, the root of its own trace, linked to the producer's; current in
        this thread from here on.
        """
        span = self._tracer.start_span(
            f"process {queue}",
            context=self._context.Context(),
            kind=self._trace.SpanKind.CONSUMER,
            links=self._links(trace_context),
            attributes={
                "messaging.system": SYSTEM,
                "messaging.operation.name": "process",
                "messaging.operation.type": "process",
                "messaging.destination.name": queue,
                "messaging.message.id": str(message_id),
                **attributes,
            },
        )
        processing = Processing(span)
        processing.token = self._context.attach(
            self._trace.set_span_in_context(span, self._context.Context())
        )
        return processing

    def end(self, processing: Processing, outcome: str, failure: Failure | None) -> None:
        """End the span: outcome, and for a failure status, error.type and the masked exception."""
        if processing.token is not None:
            self._context.detach(processing.token)
        else:  # interrupted in the middle of begin
            self._context.attach(self._context.Context())
        span = processing.span
        if span.is_recording():
            span.set_attribute("packhorse.outcome", outcome)
            if failure is not None:
                text = mask(failure.message)
                span.set_attribute("error.type", failure.error_class)
                span.set_status(self._trace.Status(self._trace.StatusCode.ERROR, text[:500]))
                span.add_event(
                    "exception",
                    {
                        "exception.type": failure.error_class,
                        "exception.message": text,
                        **({"exception.stacktrace": mask(failure.stacktrace)} if failure.stacktrace else {}),
                    },
                )
        span.end()

    def _links(self, text: str | None) -> list[Any]:
        """A link to the context that this text names; none for a text that names none. Whatever it holds, it
        is never logged.
        """
        if not text or len(text) > 200 + MAX_TRACESTATE:
            return []
        parent, _, state = text.partition(" ")
        if not _TRACEPARENT.fullmatch(parent):
            return []
        carrier = {"traceparent": parent}
        if len(state) <= MAX_TRACESTATE and _TRACESTATE.fullmatch(state):
            carrier["tracestate"] = state
        found = self._trace.get_current_span(
            self._w3c.extract(carrier, self._context.Context())
        ).get_span_context()
        return [self._trace.Link(found)] if found.is_valid else []

    # -- of the whole process ------------------------------------------------------------------------
    def ids(self) -> dict[str, str]:
        """trace_id and span_id of the current span, as hexadecimal text; empty without one."""
        found = self._trace.get_current_span().get_span_context()
        if not found.is_valid:
            return {}
        return {
            "trace_id": self._trace.format_trace_id(found.trace_id),
            "span_id": self._trace.format_span_id(found.span_id),
        }

    def flush(self, seconds: float = FLUSH_SECONDS) -> None:
        """Let the SDK export what it has; returns after `seconds` at the latest, whether the collector
        answers or not.
        """
        force_flush = getattr(self._trace.get_tracer_provider(), "force_flush", None)
        if force_flush is None:
            return

        flushed = False

        def run() -> None:
            nonlocal flushed
            try:
                flushed = force_flush(int(seconds * 1000)) is not False
            except Exception as error:  # an exporter of the application; the work is done already
                flushed = True
                logger.warning("tracing_failed error_class=%s", type(error).__name__)

        # the SDK's own time limit is not kept by every exporter; a thread that hangs ends with the process
        thread = threading.Thread(target=run, name="packhorse-flush-spans", daemon=True)
        thread.start()
        thread.join(seconds)
        if not flushed:
            logger.warning("tracing_failed error_class=%s: the last spans are lost", "Timeout")


class ExportFailures(logging.Handler):
    """Counts what this module and the SDK's own threads complain about: an unreachable collector says so in
    log lines only.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1  # under the handler's lock


#: Warnings and errors of tracing in this process; the metric observability_errors_total{part="tracing"}.
failures = ExportFailures()
#: None while this process does not trace; asked by whoever enqueues or logs.
active: Tracer | None = None


def switch_on() -> Tracer:
    """Trace from here on in this process: the tracer, the same one at every call. Raises ConfigError without
    opentelemetry-api.
    """
    global active
    if active is None:
        active = Tracer()
        for name in (logger.name, "opentelemetry"):
            logging.getLogger(name).addHandler(failures)
    return active
