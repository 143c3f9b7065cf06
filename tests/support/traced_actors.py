"""Actors of the tracing tests. With SPANS in the environment: the SDK, and a line of JSON per span in that
file.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence

import dramatiq

from tests.support.notes import nap, note

if "SPANS" in os.environ:
    from opentelemetry import trace
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

    class ToFile(SpanExporter):
        """Or, with COLLECTOR=hangs, to a collector that never answers; with COLLECTOR=refuses, to one that
        cannot be reached.
        """

        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            if os.environ.get("COLLECTOR") == "hangs":
                nap(3600)
            if os.environ.get("COLLECTOR") == "refuses":
                raise ConnectionRefusedError("nobody listens there")
            with open(os.environ["SPANS"], "a") as file:
                for span in spans:
                    links = [f"{link.context.trace_id:032x}" for link in span.links]
                    file.write(
                        json.dumps(
                            {
                                "name": span.name,
                                "trace": f"{span.context.trace_id:032x}",
                                "links": links,
                                **(span.attributes or {}),
                            }
                        )
                        + "\n"
                    )
            return SpanExportResult.SUCCESS

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(ToFile(), schedule_delay_millis=3_600_000))
    trace.set_tracer_provider(provider)


@dramatiq.actor(actor_name="effect")
def effect(key: str) -> None:
    note("otel" if any(name.startswith("opentelemetry") for name in sys.modules) else "none", key)
    note("effect", key)
