"""Alert rules and dashboard: right by Prometheus' own tools, tested per alert, documented (SPEC O2). What a
real Prometheus answers is in test_dashboard.py."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
import yaml

from packhorse.worker.observe.duties import DUTIES
from packhorse.worker.observe.metric_table import DEFINITIONS, PREFIX
from packhorse.worker.observe.process_stats import CLAIM_BOUNDS, DURATION_BOUNDS, WAIT_BOUNDS
from tests.support.workers import ROOT

pytestmark = pytest.mark.slow

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "packhorse.rules.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "packhorse.json").read_text())
#: Two panels may have one title: the number tells them apart.
QUERIES = {
    f"{panel['id']} {panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel.get("targets", [])
}
ANNOTATIONS = {entry["name"]: entry["expr"] for entry in DASHBOARD["annotations"]["list"]}
EVERY = {**{name: rule["expr"] for name, rule in (ALERTS | RECORDED).items()}, **QUERIES, **ANNOTATIONS}

BOUNDS = {
    "message_wait_seconds": WAIT_BOUNDS,
    "message_duration_seconds": DURATION_BOUNDS,
    "claim_seconds": CLAIM_BOUNDS,
}
#: The names that a query can use: a histogram has three.
EXPOSED = {
    PREFIX + name + suffix
    for name, definition in DEFINITIONS.items()
    for suffix in (("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",))
}

#: Where the docs are: a setting of the operator's Prometheus, or the path in the source.
BASE = "{{ with $externalLabels.packhorse_docs }}{{ . }}{{ else }}docs{{ end }}"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)


def _promtool(*arguments: str) -> str:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_checks_the_rules():
    assert "SUCCESS" in _promtool("check", "rules", RULES.name)


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.test.yml")), ids=lambda path: path.name)
def test_promtool_tests_the_rules(path):
    assert "SUCCESS" in _promtool("test", "rules", path.name)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not(alert):
    cases = [case for path in FOLDER.glob("*.test.yml") for case in yaml.safe_load(path.read_text())["tests"]]
    fires = {
        bool(check.get("exp_alerts"))
        for case in cases
        for check in case["alert_rule_test"]
        if check["alertname"] == alert and case["name"].startswith(f"{alert} ")
    }
    assert fires == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_complete_and_has_a_section_in_the_runbook(alert):
    rule = ALERTS[alert]
    assert (
        rule["for"]
        and rule["labels"]["severity"] in ("critical", "warning", "info")
        and rule["annotations"]["summary"]
    )
    assert rule["annotations"]["runbook_url"] == BASE + f"/runbook.md#{alert.lower()}"
    section = re.search(rf"^### {alert}\n(.*?)(?=^##|\Z)", RUNBOOK.read_text(), re.MULTILINE | re.DOTALL)
    assert section, f"docs/runbook.md has no section {alert}"
    for part in ("**Means.**", "**Look.**", "**Do.**"):
        assert part in section[1], f"{alert}: {part}"


def test_the_runbook_has_no_alerts_that_do_not_exist():
    assert set(re.findall(r"^### (Packhorse\w+)$", RUNBOOK.read_text(), re.MULTILINE)) == set(ALERTS)


@pytest.mark.parametrize("name", EVERY)
def test_rules_and_dashboard_use_only_metrics_that_exist(name):
    used = set(re.findall(r"\bpackhorse_\w+", EVERY[name]))
    recorded = set(re.findall(r"\bpackhorse:[\w:]+", EVERY[name]))
    assert used <= EXPOSED and recorded <= set(RECORDED)
    assert used or recorded


def test_a_bound_that_a_query_names_is_one_of_the_histogram_s():
    """A query for a bucket that does not exist has no data, and its alert never fires."""
    named = [
        found
        for expression in EVERY.values()
        for found in re.findall(r'packhorse_(\w+)_bucket{[^}]*\ble=~?"([^"]*)"', expression)
    ]
    assert named
    for metric, matcher in named:
        assert sum(bool(re.fullmatch(matcher, str(bound))) for bound in BOUNDS[metric]) == 1, (
            metric,
            matcher,
        )


def test_the_rules_know_which_duties_are_vital():
    """Their series are there only while something fails, so nobody would see a name that is none."""
    named = [
        found
        for rule in ALERTS.values()
        for found in re.findall(r'duty_failing_seconds{duty(=~|!~)"([^"]*)"}', rule["expr"])
    ]
    assert sorted(operator for operator, _ in named) == ["!~", "=~"]
    assert {frozenset(names.split("|")) for _, names in named} == {
        frozenset(duty.name for duty in DUTIES if duty.vital)
    }


def test_no_rule_compares_a_quantile():
    """histogram_quantile never answers more than the last bound: `> 60` would never fire. Rules count what is
    beyond a bound.
    """
    assert [name for name, rule in (ALERTS | RECORDED).items() if "histogram_quantile" in rule["expr"]] == []


def test_the_dashboard_needs_no_recording_rules():
    assert [
        name for name, expression in {**QUERIES, **ANNOTATIONS}.items() if "packhorse:" in expression
    ] == []


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for panel in panels
        for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"])
        for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)
