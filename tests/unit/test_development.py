"""Tracebacks for people, which folders are watched, who of several says something (SPEC W13, P8)."""

from __future__ import annotations

import importlib
import importlib.util
import io
import logging
import os

import pytest

from packhorse.worker.cli.render import with_tracebacks
from packhorse.worker.errors import ConfigError
from packhorse.worker.fleet.child import Once
from packhorse.worker.fleet.reload import check_reload, source_folders
from packhorse.worker.forks import contain
from packhorse.worker.observe.logging import configure
from packhorse.worker.observe.tracebacks import folded, has_own_frames
from tests.support.logs import logging_restored


def raised(function, *arguments):
    try:
        function(*arguments)
    except BaseException as error:
        return error
    raise AssertionError("it has raised nothing")


def fail(secret="4711"):
    try:
        {}[secret]
    except KeyError as error:
        raise ValueError(f"no {secret}") from error


def test_frames_of_ours_are_folded_and_texts_are_left_out():
    text = folded(raised(contain, fail))
    assert (
        text.count("Traceback (most recent call last):") == 2 and "in fail" in text and "direct cause" in text
    )
    assert "... 1 of packhorse, dramatiq or import" in text and "in contain" not in text
    assert "4711" not in text.replace('secret="4711"', "") and text.endswith("ValueError")


def test_texts_are_there_where_code_knows_no_payload():
    text = folded(raised(contain, fail), texts=True)
    assert "ValueError: no 4711" in text and "KeyError: '4711'" in text


def test_members_of_a_group_are_shown():
    def group():
        raise ExceptionGroup("two", [raised(fail), OSError("x")])

    text = folded(raised(group))
    assert "+- 1 of 2" in text and "OSError" in text and "no 4711" not in text


def test_a_chain_and_a_stack_are_bounded():
    def deep(number):
        try:
            return deep(number - 1) if number else fail()
        except Exception as error:
            raise RuntimeError from error

    assert len(folded(raised(deep, 200)).splitlines()) < 1000


def test_a_module_that_is_not_there_has_no_place_to_point_at(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "half_a_module.py").write_text("def half(:\n")
    assert not has_own_frames(importlib_error("no_such_module_at_all"))
    assert has_own_frames(importlib_error("half_a_module"))


def importlib_error(name):
    error = raised(importlib.import_module, name)
    error.__traceback__ = error.__traceback__.tb_next.tb_next  # ours, and this test's
    return error


def test_watched_folders_are_those_of_modules_and_the_current_one(tmp_path):
    here, beside, installed = tmp_path / "here", tmp_path / "beside", tmp_path / "site-packages"
    for folder in (here / "app", beside / "shared" / "deep", beside / "other", installed / "library"):
        folder.mkdir(parents=True)
    (beside / "single.py").touch()
    search = ["", str(here), str(beside), str(installed)]
    assert source_folders(["app.actors"], here, search) == [here]
    assert source_folders(["app", "shared.deep.actors", "library", "nowhere"], here, search) == [
        here,
        beside / "shared",
    ]
    assert source_folders(["single", "shared"], here, search) == [here, beside]


def test_reload_without_its_extra_names_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"reload: .*pip install 'packhorse\[reload\]'"):
        check_reload()


def test_one_of_several_processes_says_it():
    once = Once()
    answers, ask = os.pipe()
    pids = []
    for _ in range(5):
        pid = os.fork()
        if not pid:
            os.write(ask, b"y" if once.take() else b"n")
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    assert sorted(os.read(answers, 5)) == sorted(b"ynnnn") and not once.take()
    once.allow()
    once.allow()
    assert once.take() and not once.take()


def test_tracebacks_of_a_history_are_fields_of_their_own():
    entries = [
        {"attempt": 1, "event": "retry", "at": "2030-01-01T00:00:00.1+00:00", "traceback": "one"},
        {"attempt": 1, "event": "snooze"},
        {"attempt": 2, "event": "failed", "at": "2030-01-01T00:00:09+00:00", "traceback": "two"},
    ]
    shown = with_tracebacks({"id": 1, "history": entries, "steps": None})
    assert (
        shown["attempt 1, 2030-01-01T00:00:00"] == "one" and shown["attempt 2, 2030-01-01T00:00:09"] == "two"
    )
    assert "traceback" not in str(shown["history"]) and list(shown)[-1] == "steps"
    assert "two" not in with_tracebacks({"traceback": "two, whole", "history": entries}).values()
    assert with_tracebacks({"history": None}) == {"history": None} and with_tracebacks({"id": 1}) == {"id": 1}


def test_dramatiqs_line_for_throws_is_in_the_log_of_a_worker():
    with logging_restored():
        configure(level="info", log_format="json", stream=io.StringIO())
        assert logging.getLogger("dramatiq.middleware.retries.Retries").isEnabledFor(logging.INFO)
        assert not logging.getLogger("dramatiq.broker").isEnabledFor(logging.INFO)
