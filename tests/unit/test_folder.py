"""The folder of the application, by its name (W10b)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from packhorse.worker.errors import ConfigError
from packhorse.worker.runtime import folder


@pytest.fixture
def release(tmp_path, monkeypatch):
    """releases/1/app below a folder with the link current; we are in it."""
    (tmp_path / "releases/1/app").mkdir(parents=True)
    (tmp_path / "current").symlink_to("releases/1")
    monkeypatch.chdir(tmp_path / "releases/1/app")
    monkeypatch.setattr(sys, "path", list(sys.path))
    return tmp_path


def test_pwd_counts_when_it_names_the_folder_that_we_are_in(release):
    (release / "other").symlink_to("releases/1/app")
    assert folder.find(None, {"PWD": f"{release}/other"}) == release / "other"
    assert folder.find(None, {"PWD": f"{release}/current/app/"}) == release / "current/app"
    assert folder.find(None, {"PWD": f"{release}/releases/1/app"}) == release / "releases/1/app"


@pytest.mark.parametrize("pwd", ["", "/", "current/app", "/nowhere", "/usr/../nowhere"])
def test_else_the_link_that_leads_here(release, pwd):
    assert folder.find(None, {"PWD": pwd}) == release / "current/app"


def test_of_several_links_the_one_called_current_and_else_none(release):
    (release / "newest").symlink_to("releases/1")
    assert folder.find(None, {}) == release / "current/app"
    (release / "current").rename(release / "live")
    assert folder.find(None, {}) == release / "releases/1/app"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give a link away")
def test_a_link_of_somebody_else_is_not_followed(release):
    os.lchown(release / "current", 65534, 65534)
    assert folder.find(None, {}) != release / "current/app"


def test_the_setting_wins_and_must_be_a_folder(release):
    assert folder.find(release / "releases", {"PWD": f"{release}/current/app"}) == release / "releases"
    assert folder.find(Path("../app"), {"PWD": f"{release}/current/app"}) == release / "current/app"
    for wrong in (release / "nowhere", release / "file"):
        (release / "file").touch()
        with pytest.raises(ConfigError, match=r"app_dir: .*(nowhere|file)"):
            folder.find(wrong, {})


def test_a_current_folder_that_is_gone_is_an_error_that_says_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(ConfigError, match="PACKHORSE_APP_DIR"):
        folder.find(None, {})


def test_entries_of_sys_path_follow(release):
    sys.path[:] = [
        f"{release}/releases/1/app",
        f"{release}/releases/1/app/lib",
        f"{release}/releases/1/apple",
        "",
        "/usr/lib",
    ]
    path = folder.find(None, {"PWD": f"{release}/current/app"})
    (release / "releases/2/app").mkdir(parents=True)
    (release / "current").unlink()
    (release / "current").symlink_to("releases/2")
    folder.enter(path)
    assert os.getcwd() == f"{release}/releases/2/app"
    assert sys.path == [
        f"{release}/releases/2/app",
        f"{release}/releases/2/app/lib",
        f"{release}/releases/1/apple",
        "",
        "/usr/lib",
    ]


def test_why_no_process_can_start_there(release):
    assert folder.problem(release) is None
    assert folder.problem(release / "nowhere") == "No such file or directory"
    (release / "file").touch()
    assert folder.problem(release / "file") == "not a folder"
    with pytest.raises(ConfigError, match="nowhere"):
        folder.enter(release / "nowhere")
