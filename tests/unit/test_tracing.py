"""The W3C text between producer and consumer: what is written, and what hostile texts do (nothing)."""

from __future__ import annotations

import logging
import sys
import threading
from types import SimpleNamespace

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, TraceState, use_span

from packhorse.worker.attempt.messages import Outcome
from packhorse.worker.attempt.middleware.tracing import outcome
from packhorse.worker.attempt.stages import AttemptStage
from packhorse.worker.config import load_settings
from packhorse.worker.errors import ConfigError
from packhorse.worker.observe import tracing
from packhorse.worker.observe.masking import mask_record
from packhorse.worker.states import Verb
from tests.support.spans import linked, traced

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"


@pytest.fixture
def spans(monkeypatch):
    yield from traced(monkeypatch)


@pytest.fixture
def tracer(spans):
    return tracing.switch_on()


def _remote(state=None):
    return use_span(
        NonRecordingSpan(SpanContext(int(TRACE, 16), int(SPAN, 16), True, TraceFlags(1), TraceState(state)))
    )


def test_the_current_span_is_written_as_traceparent_and_tracestate(tracer):
    assert tracer.current_text() is None
    with _remote():
        assert tracer.current_text() == PARENT
    with _remote([("vendor", "a b"), ("t@v", "1")]):
        assert tracer.current_text() == f"{PARENT} vendor=a b,t@v=1"
    with _remote([(f"k{n}", "x" * 100) for n in range(6)]):
        assert tracer.current_text() == PARENT, "a tracestate beyond 512 characters is left out"


def test_a_given_trace_context_is_kept(tracer):
    with _remote():
        extra = {"trace_context": "mine"}
        tracer.stamp(extra)
    assert extra == {"trace_context": "mine"}


@pytest.mark.parametrize("state", ["", "vendor=a b", "vendor=1,t@v=2"])
def test_what_is_written_is_read(spans, tracer, state):
    tracer.end(tracer.begin("q", 1, {}, f"{PARENT} {state}".rstrip()), "done", None)
    span = spans.one("process q")
    assert linked(span) == [(int(TRACE, 16), int(SPAN, 16))]
    assert span.links[0].context.trace_state.to_header() == state
    assert span.parent is None and span.context.trace_id != int(TRACE, 16)


HOSTILE = [
    "",
    " ",
    "00",
    "nonsense",
    PARENT.upper(),
    PARENT[:-1],
    f" {PARENT}",
    f"{PARENT}\n",
    f"{PARENT}\x00",
    f"ff-{TRACE}-{SPAN}-01",
    f"00-{'0' * 32}-{SPAN}-01",
    f"00-{TRACE}-{'0' * 16}-01",
    f"00-{TRACE}-{SPAN}-01-more",
    f'{{"traceparent": "{PARENT}"}}',
    "0" * 1_000_000,
    f"{PARENT} " + "a=b," * 100_000,
    f"00-{'٣' * 32}-{SPAN}-01",
    "%s %s %n",
    "'; drop table message_queue; --",
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_that_is_no_trace_context_is_ignored_silently(spans, tracer, caplog, text):
    caplog.set_level(logging.DEBUG)
    tracer.end(tracer.begin("q", 1, {}, text), "done", None)
    assert spans.one("process q").links == ()
    assert caplog.records == []


@pytest.mark.parametrize(
    "state",
    [
        "=",
        "a",
        "A=b",
        "a=b\x1b[2J",
        "a=b,,",
        "a=" + "x" * 600,
        "+250788123456",
        ",".join(f"k{n}=1" for n in range(40)),
    ],
)
def test_a_bad_tracestate_costs_only_itself(spans, tracer, caplog, state):
    caplog.set_level(logging.DEBUG)
    tracer.end(tracer.begin("q", 1, {}, f"{PARENT} {state}"), "done", None)
    (link,) = spans.one("process q").links
    assert link.context.trace_id == int(TRACE, 16) and not link.context.trace_state
    assert caplog.records == []


def test_a_span_that_lost_its_token_leaves_no_context_behind(spans, tracer):
    """An interrupt can arrive between the two lines of begin."""
    processing = tracer.begin("q", 1, {}, None)
    token, processing.token = processing.token, None
    tracer.end(processing, "released", None)
    assert tracer.ids() == {} and token is not None


def test_a_broken_sampler_or_processor_never_stops_an_enqueue(spans, tracer, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("sampler")

    with trace.get_tracer("test").start_as_current_span("outer") as outer:
        monkeypatch.setattr(tracer, "_tracer", SimpleNamespace(start_span=broken))
        with tracer.sending(("q",)) as sent:
            sent(7)
            assert tracer.current_text().split("-")[2] == f"{outer.get_span_context().span_id:016x}", (
                "the caller's span is still passed on"
            )
    assert [record.getMessage() for record in caplog.records] == ["tracing_failed error_class=RuntimeError"]


@pytest.mark.timeout(20)
def test_a_flush_that_hangs_is_left_alone(tracer, monkeypatch, caplog):
    hang = threading.Event()
    monkeypatch.setattr(
        tracer,
        "_trace",
        SimpleNamespace(get_tracer_provider=lambda: SimpleNamespace(force_flush=lambda _: hang.wait())),
    )
    tracer.flush(0.05)
    assert not hang.is_set(), "it returned before the collector answered"
    hang.set()
    assert [record.getMessage() for record in caplog.records] == [
        "tracing_failed error_class=Timeout: the last spans are lost"
    ]


@pytest.mark.parametrize(("answer", "said"), [(True, 0), (None, 0), (False, 1)])
def test_a_flush_says_when_the_collector_took_nothing(tracer, monkeypatch, caplog, answer, said):
    monkeypatch.setattr(
        tracer,
        "_trace",
        SimpleNamespace(get_tracer_provider=lambda: SimpleNamespace(force_flush=lambda _: answer)),
    )
    before = tracing.failures.count
    tracer.flush(5)
    assert len(caplog.records) == said == tracing.failures.count - before


ENDINGS = [
    ({}, None, "done"),
    ({"stage": AttemptStage.COMMITTED}, RuntimeError(), "done"),
    ({"lost": True}, None, "lost"),
    ({"failed": True}, None, "dead"),
    ({}, RuntimeError(), "failed"),
    *[
        ({"outcome": Outcome(Verb(verb))}, RuntimeError(), name)
        for verb, name in [
            ("fail", "failed"),
            ("retry", "failed"),
            ("bury", "dead"),
            ("snooze", "snooze"),
            ("cancel", "cancelled"),
            ("release", "released"),
        ]
    ],
]


@pytest.mark.parametrize(("fields", "exception", "expected"), ENDINGS)
def test_every_ending_has_its_outcome(fields, exception, expected):
    message = SimpleNamespace(
        **{"stage": AttemptStage.RUNNING, "lost": False, "failed": False, "outcome": None, **fields}
    )
    assert outcome(message, exception) == expected


def test_trace_ids_that_look_like_phone_numbers_stay_whole_and_phone_numbers_do_not():
    """The mask took ten digits in a row out of the middle of an id."""
    event = mask_record(
        None, "info", {"trace_id": "fc274b868846358320d690778e921421", "span_id": "52225647827897e7"}
    )
    assert event == {"trace_id": "fc274b868846358320d690778e921421", "span_id": "52225647827897e7"}
    assert mask_record(None, "info", {"trace_id": "+250788123456", "span_id": "0788123456"}) == {
        "trace_id": "+250788***456",
        "span_id": "0788***456",
    }


def test_without_the_package_tracing_is_one_problem_of_the_configuration(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.setattr(tracing, "active", None)
    with pytest.raises(ConfigError) as caught:
        load_settings({"PACKHORSE_TRACING": "true"})
    assert caught.value.problems == [
        "tracing (from PACKHORSE_TRACING): needs the package opentelemetry-api: pip install 'packhorse[otel]'"
    ]
    with pytest.raises(ConfigError, match="packhorse\\[otel\\]"):
        tracing.switch_on()
    assert load_settings({}).tracing is False, "off needs nothing"
