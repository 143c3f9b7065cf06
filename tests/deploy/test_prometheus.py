"""Alert rules and dashboard: right by Prometheus' own tools, tested per alert, documented, and answered by a real Prometheus (SPEC O2)."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from typing import Any

import pytest
import yaml

from tests.deploy.metrics import BOUNDS, METRICS, exposed_names, exposition, serve_metrics
from tests.support.waiting import wait_until
from tests.support.workers import ROOT
from worker.observe.metrics import DEFINITIONS

FOLDER = ROOT / "deploy" / "prometheus"
RULES = FOLDER / "packhorse.rules.yml"
RUNBOOK = ROOT / "docs" / "runbook.md"
GROUPS = yaml.safe_load(RULES.read_text())["groups"]
ALERTS = {rule["alert"]: rule for group in GROUPS for rule in group["rules"] if "alert" in rule}
RECORDED = {rule["record"]: rule for group in GROUPS for rule in group["rules"] if "record" in rule}
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "packhorse.json").read_text())
QUERIES = {
    f"{panel['title']} {target['refId']}": target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
}
ANNOTATIONS = {entry["name"]: entry["expr"] for entry in DASHBOARD["annotations"]["list"]}
EVERY = {**{name: rule["expr"] for name, rule in (ALERTS | RECORDED).items()}, **QUERIES, **ANNOTATIONS}

#: Where the docs are: a setting of the operator's Prometheus, or the path in the source.
BASE = "{{ with $externalLabels.packhorse_docs }}{{ . }}{{ else }}docs{{ end }}"

needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")


def _promtool(*arguments: str, stdin: str = "") -> str:
    done = subprocess.run(["promtool", *arguments], cwd=FOLDER, input=stdin, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@needs_promtool
def test_promtool_checks_the_rules():
    assert "SUCCESS" in _promtool("check", "rules", RULES.name)


@needs_promtool
def test_promtool_finds_nothing_to_improve_in_the_list_of_metrics():
    assert _promtool("check", "metrics", stdin=exposition(1)) == ""


@needs_promtool
@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.test.yml")), ids=lambda path: path.name)
def test_promtool_tests_the_rules(path):
    assert "SUCCESS" in _promtool("test", "rules", path.name)


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_has_a_case_where_it_fires_and_one_where_it_does_not(alert):
    cases = [case for path in FOLDER.glob("*.test.yml") for case in yaml.safe_load(path.read_text())["tests"]]
    fires = {
        bool(check.get("exp_alerts")) for case in cases for check in case["alert_rule_test"]
        if check["alertname"] == alert and case["name"].startswith(f"{alert} ")
    }
    assert fires == {True, False}


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_complete_and_has_a_section_in_the_runbook(alert):
    rule = ALERTS[alert]
    assert rule["for"] and rule["labels"]["severity"] in ("critical", "warning", "info") and rule["annotations"]["summary"]
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
    assert used <= exposed_names() and recorded <= set(RECORDED)
    assert used or recorded


def test_the_list_of_metrics_is_the_code_s():
    """Every metric of the code is exposed here with its kind and labels; what is used before the code has it is named."""
    kinds = {name: (definition.kind, set(definition.labels)) for name, definition in DEFINITIONS.items()}
    listed = {name: (kind, set(labels)) for name, (kind, labels) in METRICS.items()}
    assert {name: listed.get(name) for name in kinds} == kinds
    assert set(listed) == set(kinds)


def test_a_bound_that_a_query_names_is_one_of_the_histogram_s():
    """A query for a bucket that does not exist has no data, and its alert never fires."""
    named = [found for expression in EVERY.values() for found in re.findall(r'packhorse_(\w+)_bucket{[^}]*\ble=~?"([^"]*)"', expression)]
    assert named
    for metric, matcher in named:
        assert sum(bool(re.fullmatch(matcher, str(bound))) for bound in BOUNDS[metric]) == 1, (metric, matcher)


def test_no_rule_compares_a_quantile():
    """histogram_quantile never answers more than the last bound: `> 60` would never fire. Rules count what is beyond a bound."""
    assert [name for name, rule in (ALERTS | RECORDED).items() if "histogram_quantile" in rule["expr"]] == []


def test_the_dashboard_needs_no_recording_rules():
    assert [name for name, expression in {**QUERIES, **ANNOTATIONS}.items() if "packhorse:" in expression] == []


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y) for panel in panels for grid in [panel["gridPos"]]
        for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
    ]
    assert len(set(cells)) == len(cells)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """A real Prometheus that scrapes all metrics every second and has evaluated our rules; its address."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serve_metrics() as target:
        (folder / "prometheus.yml").write_text(yaml.safe_dump({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(RULES)],
            "scrape_configs": [{"job_name": "packhorse", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
        }))
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                 f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
            )
        address = f"http://127.0.0.1:{port}"
        try:
            wait_until(lambda: _scraped(address), 60, "three scrapes")
            yield address
        finally:
            process.terminate()
            process.wait(30)


def _ask(address: str, expression: str) -> list[Any]:
    """The result of an instant query, with Grafana's variables filled in; fails the test on an error."""
    for variable, value in {"$__rate_interval": "1m", "$namespace": ".*", "$queue": ".*"}.items():
        expression = expression.replace(variable, value)
    url = f"{address}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    with urllib.request.urlopen(url, timeout=30) as response:
        body = json.load(response)
    assert body["status"] == "success" and not body.get("warnings"), body
    return body["data"]["result"]


def _scraped(address: str) -> bool:
    try:
        return bool(_ask(address, "count_over_time(packhorse_message_wait_seconds_count[1m]) > 2"))
    except OSError:
        return False


@pytest.mark.slow
def test_every_panel_shows_data(prometheus):
    assert [title for title, expression in QUERIES.items() if not _ask(prometheus, expression)] == []


@pytest.mark.slow
def test_every_recorded_expression_has_data(prometheus):
    assert [name for name, rule in RECORDED.items() if not _ask(prometheus, rule["expr"])] == []


@pytest.mark.slow
def test_every_alert_and_annotation_is_answered(prometheus):
    for expression in [*(rule["expr"] for rule in ALERTS.values()), *ANNOTATIONS.values()]:
        _ask(prometheus, expression)


@pytest.mark.slow
def test_prometheus_loads_every_rule(prometheus):
    with urllib.request.urlopen(f"{prometheus}/api/v1/rules", timeout=30) as response:
        rules = [rule for group in json.load(response)["data"]["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(ALERTS) | set(RECORDED)
    assert [rule["name"] for rule in rules if rule.get("lastError")] == []
