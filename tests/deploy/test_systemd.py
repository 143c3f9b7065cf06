"""The units of deploy/systemd: systemd's own tools find nothing to say, and they agree with the code (SPEC
O7).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from packhorse.worker.config import Settings
from packhorse.worker.exits import FATAL_CHILD_EXITS
from packhorse.worker.fleet.supervisor import KILL_MARGIN_SECONDS
from packhorse.worker.ops import deploy_files
from tests.integration.test_cli_documented import commands
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

UNITS = ROOT / "deploy" / "systemd"
NAMES = [
    "packhorse-worker@.service",
    "packhorse-scheduler@.service",
    "packhorse-migrate.service",
    "packhorse-web.service",
    "packhorse-relay.service",
]
INSTANCES = NAMES[:2]
LONG_RUNNING = [*INSTANCES, "packhorse-relay.service"]
MAX_EXPOSURE = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None or not Path("/lib/systemd/system").is_dir(),
    reason="systemd-analyze is not installed",
)


def directives(name: str) -> dict[str, list[str]]:
    """Every `Key=value` of a unit; a key may stand there several times."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        if match := re.match(r"^([A-Z]\w+)=(.*)$", line):
            found.setdefault(match[1], []).append(match[2])
    return found


def hardening(name: str) -> str:
    return (UNITS / name).read_text().split("DynamicUser=")[1].split("[Install]")[0]


def test_these_are_all_the_units():
    assert {path.name for path in UNITS.glob("*.service")} == set(NAMES)


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_systemd_analyze_verify_is_silent(tmp_path, name):
    installed = tmp_path / "etc" / "systemd" / "system"
    deploy_files.write("systemd", installed)
    shutil.copytree("/lib/systemd/system", tmp_path / "usr" / "lib" / "systemd" / "system", symlinks=True)
    (tmp_path / "lib").symlink_to("usr/lib")
    for program in ("opt/packhorse/bin/packhorse", "bin/kill"):
        (tmp_path / program).parent.mkdir(parents=True)
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    unit = name.replace("@.", "@my_app.actors.")
    done = subprocess.run(
        ["systemd-analyze", "verify", f"--root={tmp_path}", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
@pytest.mark.parametrize("name", NAMES)
def test_the_security_score_is_good(name):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--no-pager", str(UNITS / name)],
        capture_output=True,
        text=True,
        check=False,
    )
    match = re.search(r"Overall exposure level for .*: ([0-9.]+)", done.stdout)
    assert match, done.stdout + done.stderr
    assert float(match[1]) <= MAX_EXPOSURE, done.stdout


def test_the_units_are_hardened_alike():
    assert {hardening(name) for name in NAMES} == {hardening(NAMES[0])}


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_what_would_end_the_same_way_again_is_not_restarted(name):
    (codes,) = directives(name)["RestartPreventExitStatus"]
    assert {int(code) for code in codes.split()} == set(FATAL_CHILD_EXITS)
    assert directives(name)["Restart"] == ["always"] and directives(name)["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_systemd_waits_longer_than_the_drain(name):
    defaults = {key: field.default for key, field in Settings.model_fields.items()}
    (limit,) = directives(name)["TimeoutStopSec"]
    assert int(limit) > defaults["drain_seconds"] + defaults["call_deadline_seconds"] + KILL_MARGIN_SECONDS
    assert directives(name)["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_systemd_watches(name):
    unit = directives(name)
    assert (unit["Type"], unit["NotifyAccess"]) == (["notify"], ["main"])
    assert int(unit["WatchdogSec"][0]) > 0


@pytest.mark.parametrize("name", NAMES)
def test_the_connection_string_is_a_credential_and_not_in_the_unit(name):
    unit = directives(name)
    secrets = ["database_url", "amqp_url"] if "relay" in name else ["database_url"]
    assert [value.split(":")[0] for value in unit["LoadCredential"]] == secrets
    for secret in secrets:
        assert f"PACKHORSE_{secret.upper()}_FILE=%d/{secret}" in " ".join(unit["Environment"]).split()
    assert "postgresql://" not in (UNITS / name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_command_exists(name):
    (start,) = directives(name)["ExecStart"]
    assert start.removeprefix("/opt/packhorse/bin/packhorse ") in commands()


@pytest.mark.parametrize("name", INSTANCES)
def test_the_instance_is_the_module_that_is_loaded(name):
    """The scheduler, too: else it would not know the schedules that are declared in code."""
    unit = directives(name)
    assert any("PACKHORSE_ACTORS=%I" in value.split() for value in unit["Environment"])
    assert unit["EnvironmentFile"][0] == "-/etc/packhorse/%i.env"


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_a_reload_is_the_rolling_restart(name):
    assert directives(name)["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
