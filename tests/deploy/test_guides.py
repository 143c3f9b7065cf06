"""What the guides for operators name exists."""

from __future__ import annotations

import re

import psycopg
import pytest

from packhorse.worker.exits import EXIT_OK
from tests.integration.test_cli_documented import commands, options
from tests.support.cli import Cli
from tests.support.postgres import Server, available_servers, open_for_everyone
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

GUIDES = ["docs/runbook.md", "docs/deployment.md", "SECURITY.md"]


def _anchors(text: str) -> set[str]:
    """The anchors of the headings, as the usual renderers make them."""
    return {
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    }


@pytest.mark.parametrize("guide", GUIDES)
def test_every_command_and_option_in_a_guide_exists(guide):
    known = commands()
    text = (ROOT / guide).read_text()
    for line in re.findall(r"`packhorse ([a-z][^`]*)`", text) + re.findall(
        r"^ *packhorse ([a-z].*)$", text, re.MULTILINE
    ):
        words = line.split()
        name = next((name for name in (" ".join(words[:2]), words[0]) if name in known), None)
        assert name, f"{guide}: packhorse {line}"
        assert set(re.findall(r"--[a-z-]+", line)) <= options(known[name]), f"{guide}: packhorse {line}"


@pytest.mark.parametrize("guide", GUIDES)
def test_every_anchor_that_a_guide_links_to_exists(guide):
    page = ROOT / guide
    for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", page.read_text()):
        other = page if not target else page.parent / target
        assert anchor in _anchors(other.read_text()), f"{guide}: {target}#{anchor}"


@pytest.fixture(params=list(available_servers()))
def bare_server(request):
    """A server without any role of ours, as the guide finds it."""
    open_for_everyone(available_servers()[request.param])
    server = Server(request.param, available_servers()[request.param], bare=True)
    yield server
    server.close()


def test_the_roles_of_the_guide_can_do_what_it_gives_them_to_do(bare_server, tmp_path):
    guide = (ROOT / "docs/deployment.md").read_text().split("## Roles in the database")[1]
    statements = re.search(r"```sql\n(.*?)```", guide, re.DOTALL)[1].replace("…", "secret")
    bare_server.command("create database app")
    with psycopg.connect(bare_server.url("app"), autocommit=True) as superuser:
        superuser.execute(statements)
    owner, worker, web, looker = (
        Cli(tmp_path, bare_server.url("app", f"app_{name}")) for name in ("owner", "worker", "web", "looker")
    )
    assert owner("migrate", "up", "--with", "platform").code == EXIT_OK
    assert owner("migrate", "up", PACKHORSE_DB_SCHEMA="apart").code == EXIT_OK
    assert worker("health").code == EXIT_OK and worker("queue", "pause", "default").code == EXIT_OK
    assert (
        web("enqueue", "reply", "--allow-unknown-type").code == EXIT_OK
        and web("queue", "list").code != EXIT_OK
    )
    assert looker("health").code == EXIT_OK and looker("queue", "resume", "default").code != EXIT_OK


def test_doctor_does_not_say_that_a_login_is_in_a_role_that_does_not_exist(bare_server, tmp_path):
    bare_server.command("create role app_owner login")
    findings = Cli(tmp_path, bare_server.url("postgres", "app_owner"))("doctor", "--json").document[
        "findings"
    ]
    assert {finding["status"] for finding in findings if finding["subject"] == "role"} == {"fail"}
