"""Secrets from files (PACKHORSE_<NAME>_FILE): systemd credentials and mounted secrets never pass through the
environment.
"""

from __future__ import annotations

import json

import pytest

from packhorse.worker.config import SECRETS, load_settings, shown
from packhorse.worker.errors import ConfigError

URL = "postgresql://worker:s3cret@db/app"


def _problems(environ):
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return caught.value.problems


@pytest.mark.parametrize("name", sorted(SECRETS))
def test_every_secret_can_come_from_a_file(tmp_path, name):
    path = tmp_path / "value"
    several = name == "web_databases"
    url = URL.replace("postgresql", "amqp") if name == "amqp_url" else URL
    path.write_text(json.dumps({"shop": url}) if several else f"{url}\n")
    found = getattr(load_settings({f"PACKHORSE_{name.upper()}_FILE": str(path)}), name)
    assert (found["shop"] if several else found).get_secret_value() == url
    settings = load_settings({f"PACKHORSE_{name.upper()}_FILE": str(path)})
    assert "s3cret" not in str(shown(settings))


def test_the_file_wins_over_database_url(tmp_path):
    path = tmp_path / "value"
    path.write_text(URL)
    settings = load_settings(
        {"DATABASE_URL": "postgresql://other/other", "PACKHORSE_DATABASE_URL_FILE": str(path)}
    )
    assert settings.database_url is not None and settings.database_url.get_secret_value() == URL


CONTENTS = {
    "empty": (b"", "one line"),
    "blank": (b" \n\n", "one line"),
    "two lines": (f"{URL}\n{URL}\n".encode(), "one line"),
    "too long": (b"postgresql://" + b"x" * 70_000, "one line"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "not a connection string": (b"s3cret", "not a PostgreSQL connection string"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_bad_file_is_one_problem_that_names_the_variable_and_hides_the_content(tmp_path, name):
    content, reason = CONTENTS[name]
    path = tmp_path / "value"
    path.write_bytes(content)
    (problem,) = _problems({"PACKHORSE_DATABASE_URL_FILE": str(path)})
    assert "PACKHORSE_DATABASE_URL_FILE" in problem and reason in problem
    assert "s3cret" not in problem and len(problem) < 300


def test_a_file_that_cannot_be_read_is_named_with_the_reason(tmp_path):
    for path, reason in [(tmp_path / "missing", "No such file"), (tmp_path, "Is a directory")]:
        (problem,) = _problems({"PACKHORSE_LISTEN_URL_FILE": str(path)})
        assert (
            problem.startswith("PACKHORSE_LISTEN_URL_FILE: ") and str(path) in problem and reason in problem
        )


def test_a_value_and_a_file_for_the_same_secret_are_refused(tmp_path):
    path = tmp_path / "value"
    path.write_text(URL)
    (problem,) = _problems({"PACKHORSE_DATABASE_URL": URL, "PACKHORSE_DATABASE_URL_FILE": str(path)})
    assert "PACKHORSE_DATABASE_URL is set too" in problem and "s3cret" not in problem


def test_what_is_no_secret_cannot_come_from_a_file():
    (problem,) = _problems({"PACKHORSE_THREADS_FILE": "/etc/hostname"})
    assert "threads_file" in problem


def test_bad_files_are_reported_together_with_other_problems(tmp_path):
    problems = _problems({"PACKHORSE_REDIS_URL_FILE": str(tmp_path / "missing"), "PACKHORSE_THREADS": "many"})
    assert len(problems) == 2
