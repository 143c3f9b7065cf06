"""The objects of operators (KEDA, Prometheus) against models of the operators' own definitions, fetched with
npm (SPEC O7).
"""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.workers import ROOT

pytestmark = pytest.mark.slow
MODELS = [
    "@kubernetes-models/keda@0.4.2",
    "@kubernetes-models/prometheus-operator@6.0.0",
    "@kubernetes-models/validate@4.0.0",
]
FILES = ["autoscaling/scaled-object.yaml", "monitoring/pod-monitor.yaml", "monitoring/prometheus-rule.yaml"]
OBJECTS = [
    yaml.safe_load((ROOT / "deploy" / "kubernetes" / "components" / file).read_text()) for file in FILES
]


@pytest.fixture(scope="module")
def validator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The script beside the models that it imports."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("npm and node are not installed")
    folder = tmp_path_factory.mktemp("operators")
    try:
        done = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", *MODELS],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        pytest.skip("npm fetched nothing within two minutes")
    if done.returncode:
        pytest.skip(f"npm could not fetch the models: {done.stderr[-200:]}")
    return Path(shutil.copy(Path(__file__).with_name("operators.mjs"), folder))


def verdicts(validator: Path, objects: list[dict[str, Any]]) -> list[str]:
    done = subprocess.run(
        ["node", str(validator)],
        input=json.dumps(objects),
        cwd=validator.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def test_every_object_is_what_its_operator_takes(validator: Path) -> None:
    assert verdicts(validator, OBJECTS) == [f"{item['kind']}: ok" for item in OBJECTS]


@pytest.mark.parametrize(
    ("index", "field", "value"),
    [
        (0, "scaleTargetRef", {}),
        (0, "maxReplicaCount", "many"),
        (1, "selector", 5),
        (1, "podMetricsEndpoints", "metrics"),
        (2, "groups", [{}]),
    ],
)
def test_an_object_that_it_would_not_take_is_noticed(
    validator: Path, index: int, field: str, value: object
) -> None:
    wrong = copy.deepcopy(OBJECTS[index])
    assert field in wrong["spec"]
    wrong["spec"][field] = value
    (verdict,) = verdicts(validator, [wrong])
    assert field in verdict and not verdict.endswith(": ok"), verdict
