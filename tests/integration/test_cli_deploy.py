"""packhorse deploy: units and manifests as the repository has them, in a folder of the operator's (SPEC
O7).
"""

from __future__ import annotations

import os

import pytest

from packhorse.worker.exits import EXIT_OK, EXIT_USAGE
from tests.support.cli import Cli
from tests.support.workers import ROOT

KINDS = ["systemd", "kubernetes"]


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_written_as_it_is_and_named(tmp_path, kind):
    out = tmp_path / "new" / kind
    ran = Cli(tmp_path)("deploy", kind, "--out", out)
    assert ran.code == EXIT_OK and files(out) == files(ROOT / "deploy" / kind) != {}
    assert [line for line in ran.out.splitlines() if line.startswith("/")] == sorted(
        str(out / name) for name in files(out)
    )


def test_the_next_commands_are_said(tmp_path):
    cli = Cli(tmp_path)
    said = cli("deploy", "systemd", "--out", "my units").out
    assert (
        "cp 'my units'/*.service /etc/systemd/system/" in said
        and "systemctl enable --now packhorse-worker@my_app.actors" in said
    )
    document = cli("deploy", "kubernetes", "--out", "k8s", "--json").document
    assert document["folder"] == "k8s" and document["files"] == sorted(files(ROOT / "deploy/kubernetes"))
    assert document["next"] == [
        "kubectl diff -k k8s/overlays/production",
        "kubectl apply -k k8s/overlays/production",
    ]


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    refused = Cli(tmp_path)("deploy", "systemd", "--out", tmp_path, "--json")
    assert (
        refused.code == EXIT_USAGE and refused.error["field"] == "out" and "--force" in refused.error["hint"]
    )
    assert list(files(tmp_path)) == ["mine"]


def test_force_replaces_files_of_the_same_name_and_follows_no_link(tmp_path):
    out = tmp_path / "units"
    out.mkdir()
    for name in ("theirs", "packhorse-migrate.service"):
        (out / name).write_text(name)
    (tmp_path / "elsewhere").write_text("theirs")
    (out / "packhorse-worker@.service").symlink_to(tmp_path / "elsewhere")
    assert Cli(tmp_path)("deploy", "systemd", "--out", out, "--force").code == EXIT_OK
    assert files(out) == files(ROOT / "deploy/systemd") | {"theirs": b"theirs"}
    assert (tmp_path / "elsewhere").read_text() == "theirs"


def test_what_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "units/packhorse-migrate.service").mkdir(parents=True)
    cli = Cli(tmp_path)
    for out, named in (("file", "file"), ("units", "packhorse-migrate.service")):
        refused = cli("deploy", "systemd", "--out", out, "--force")
        assert (
            refused.code == EXIT_USAGE
            and f"out: cannot write {named if out == named else os.path.join(out, named)}: " in refused.err
        )
