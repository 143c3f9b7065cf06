"""The real OpenTelemetry SDK with spans kept in memory, for tests in one process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from packhorse.worker.observe import tracing
from tests.support.waiting import wait_until

_EXPORTER = InMemorySpanExporter()


class Spans:
    """Ended spans of this process, oldest first."""

    def all(self, name: str | None = None) -> list[ReadableSpan]:
        return [span for span in _EXPORTER.get_finished_spans() if name is None or span.name == name]

    def wait(self, name: str, count: int = 1) -> list[ReadableSpan]:
        """At least `count` spans of this name."""
        wait_until(lambda: len(self.all(name)) >= count, 10, f"{count} spans {name!r}")
        return self.all(name)

    def one(self, name: str) -> ReadableSpan:
        (span,) = self.wait(name)
        return span


def traced(monkeypatch: Any) -> Iterator[Spans]:
    """Body of a fixture: tracing can be switched on, and is off again afterwards. A process has one provider
    for ever.
    """
    if not isinstance(trace.get_tracer_provider(), TracerProvider):
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(_EXPORTER))
        trace.set_tracer_provider(provider)
    monkeypatch.setattr(tracing, "active", None)
    _EXPORTER.clear()
    yield Spans()
    _EXPORTER.clear()


def context_of(span: ReadableSpan) -> tuple[int, int]:
    return span.context.trace_id, span.context.span_id


def linked(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


def text_of(span: ReadableSpan) -> str:
    """Everything that a span tells anybody."""
    return span.to_json() + str([(event.name, dict(event.attributes or {})) for event in span.events])
