"""How the page writes numbers, times and what people have sent (SPEC O6, FAILURES 73)."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta

import pytest

pytest.importorskip("jinja2")

from packhorse.worker.web import render

HOSTILE = "<script>alert(1)</script>{{ 7 * 7 }}{% raw %}\x00\x1b[31m\u202egnp.exe\u2028\ufeff\"'&"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234567, "1\u202f234\u202f567"),
        (1234.5, "1\u202f234"),
        (0.1234, "0.123"),
        (12.34, "12.3"),
        (None, "–"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_have_three_digits_and_thin_spaces(value, shown):
    assert render.number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 ms"),
        (0.0123, "12.3 ms"),
        (1, "1 s"),
        (90, "90 s"),
        (510, "8.5 min"),
        (7200, "2 h"),
        (3 * 86400, "3 d"),
        (None, "–"),
        (math.inf, "–"),
    ],
)
def test_durations_have_a_unit(value, shown):
    assert render.seconds(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (5 * 1024**3, "5 GiB"),
        (2**62, "4\u202f194\u202f304 TiB"),
        (None, "–"),
    ],
)
def test_sizes_have_a_unit(value, shown):
    assert render.size(value) == shown


def test_a_time_says_how_long_ago_and_exactly_when():
    at = datetime.now(UTC) - timedelta(minutes=5)
    html = str(render.ago(at))
    assert ">5 min ago</time>" in html and f'title="{render.exact(at)}"' in html
    assert ">in 5 min</time>" in str(render.ago(datetime.now(UTC) + timedelta(seconds=300.5)))
    assert render.ago("infinity") == "infinity" and render.ago(None) == "–"
    assert str(render.ago("2026-01-02 03:04:05+02")).count("2026-01-02 01:04:05.000Z") == 1, (
        "a time of the database as text, in UTC"
    )


def test_nothing_of_a_text_is_obeyed():
    template = render.environment().from_string("{{ text|visible }}")
    shown = template.render(text=HOSTILE)
    assert "<" not in shown and "49" not in shown and "{{ 7 * 7 }}" in shown
    assert not any(character in shown for character in "\x00\x1b\u202e\u2028\ufeff")
    assert "\\u202e" in shown and "\\u0000" in shown
    assert render.visible("a\nb\tc é 漢 👍") == "a\nb\tc é 漢 👍"


def test_a_payload_is_masked_but_for_its_shape():
    value = {"name": "Ann", "phones": ["+250788123456", 17], "nested": {"secret": None, "ok": True}}
    masked, open_ = render.payload_rows(value), render.payload_rows(value, masked=False)
    assert [(line["depth"], line["name"]) for line in masked] == [
        (line["depth"], line["name"]) for line in open_
    ]
    text = " ".join(line["text"] for line in masked)
    assert (
        "Ann" not in text
        and "250" not in text
        and "17" not in text
        and "true" not in text
        and "••• 3 characters" in text
    )
    assert "Ann" in " ".join(line["text"] for line in open_)
    assert {line["kind"] for line in open_} == {"object", "text", "list", "number", "other"}


def test_a_payload_of_any_size_and_depth_is_bounded():
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    assert len(render.payload_rows(deep)) <= render.MOST_DEPTH + 2
    wide = render.payload_rows({str(number): number for number in range(100_000)}, masked=False)
    assert len(wide) == render.MOST_PLACES + 1 and "not shown" in wide[-1]["text"]
    (long,) = render.payload_rows("x" * 1_048_576, masked=False)
    assert len(long["text"]) < render.MOST_CHARACTERS + 100 and long["cut"]
    (hidden,) = render.payload_rows("not json: " + HOSTILE)
    assert "script" not in hidden["text"]


def test_a_sparkline_has_gaps_marks_and_no_markup_of_others():
    svg = str(render.sparkline([1.0, None, 3.0, 4.0], HOSTILE, marks=[(0.5, HOSTILE)]))
    assert svg.count("M") == 2 and svg.count("<line ") == 1 and "<script" not in svg and "style=" not in svg
    assert (
        "NaN" not in str(render.sparkline([], "none")) and str(render.sparkline([0.0], "one")).count("M") == 1
    )


def test_links_keep_what_they_are_given():
    assert (
        render.link("/q/db", "/messages", {"where": "queue=a b&c", "after": None, "x": ""})
        == "/q/db/messages?where=queue%3Da+b%26c"
    )
    assert render.link("", "/") == "/"
