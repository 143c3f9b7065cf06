"""Settings from odd input: empty variables, paths for modules, an @ in a password; all problems at once (SPEC
W11).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from packhorse.worker.config import load_settings
from packhorse.worker.db.embedded import Embedded
from packhorse.worker.errors import ConfigError

URL = "postgresql://worker@db/app"


def _problems(environ, toml_path=None):
    with pytest.raises(ConfigError) as caught:
        load_settings(environ, toml_path)
    return caught.value.problems


def test_an_empty_variable_of_a_secret_hides_no_other_source(tmp_path):
    """As a compose file leaves it whose own variable is not set: work would have gone to an embedded
    database.
    """
    toml = tmp_path / "packhorse.toml"
    toml.write_text(f'database_url = "{URL}"\n')
    for environ, path in [
        ({"DATABASE_URL": URL, "PACKHORSE_DATABASE_URL": ""}, None),
        ({"PACKHORSE_DATABASE_URL": ""}, toml),
    ]:
        settings = load_settings(environ, path)
        assert settings.database_url is not None and settings.database_url.get_secret_value() == URL
    assert load_settings({"PACKHORSE_REDIS_URL": ""}).redis_url is None


def test_an_at_sign_in_a_password_is_refused_and_not_shown():
    """libpq would look for a host with the rest of the password in its name, and say so in its error."""
    (problem,) = _problems({"DATABASE_URL": "postgresql://worker:pass@cret@db/app"})
    assert "DATABASE_URL" in problem and "%40" in problem and "cret" not in problem
    for good in (
        "postgresql://worker:%40cret@db/app",
        "postgresql://db/app?user=a@b",
        "postgresql://worker@db/a@b",
    ):
        load_settings({"DATABASE_URL": good})


@pytest.mark.parametrize(
    "given", ["./my_app/actors.py", "../my_app/actors.py", "my_app/actors.py", "my_app/actors"]
)
def test_a_path_for_a_module_is_refused_with_the_modules_name(given):
    (problem,) = _problems({"PACKHORSE_ACTORS": f"other,{given}"})
    assert "PACKHORSE_ACTORS" in problem and "is a path" in problem and problem.endswith("my_app.actors")


def test_names_in_a_list_of_toml_are_read_as_those_of_a_variable(tmp_path):
    toml = tmp_path / "packhorse.toml"
    toml.write_text('actors = [" shop ", ""]\nqueues = [" mail"]\n')
    settings = load_settings({}, toml)
    assert (settings.actors, settings.queues) == (("shop",), ("mail",))


def test_what_contradicts_each_other_is_said_beside_what_is_wrong_by_itself():
    problems = _problems(
        {"PACKHORSE_THREADS": "many", "PACKHORSE_HEARTBEAT_SECONDS": "19", "PACKHORSE_HANG_SECONDS": "5"}
    )
    assert [problem.split(" ")[0].rstrip(":") for problem in problems] == [
        "threads",
        "heartbeat_seconds",
        "hang_seconds",
    ]
    (problem,) = _problems({"PACKHORSE_LEASE_SECONDS": "soon", "PACKHORSE_HEARTBEAT_SECONDS": "19"})
    assert "lease_seconds" in problem, "nothing is concluded from what was refused"


def test_the_data_folder_is_named_and_may_begin_with_the_home_folder():
    (problem,) = _problems({"PACKHORSE_DATA_DIR": " "})
    assert "PACKHORSE_DATA_DIR" in problem
    assert load_settings({"PACKHORSE_DATA_DIR": "~/data"}).data_dir == Path.home() / "data"


def test_a_folder_that_holds_something_else_keeps_its_gitignore(tmp_path):
    (tmp_path / ".gitignore").write_text(".env\n")
    Embedded(tmp_path)._make_folders()
    assert (tmp_path / ".gitignore").read_text() == ".env\n"
    Embedded(tmp_path / "new")._make_folders()
    assert (tmp_path / "new" / ".gitignore").read_text() == "*\n"
