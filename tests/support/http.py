"""Asking a worker's endpoints, and reading its metrics as Prometheus does."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from typing import Any

from prometheus_client.parser import text_string_to_metric_families


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def get(port: int, path: str, accept: str = "*/*") -> tuple[int, str]:
    """Status and body; (0, "") when nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def problems(port: int, probe: str) -> list[str] | None:
    """What a probe complains about; None when nobody answers."""
    status, body = get(port, probe)
    if status == 0:
        return None
    found = json.loads(body)["problems"]
    assert (status == 200) == (not found), body
    return list(found)


def scale(port: int) -> dict[str, Any]:
    """The answer of /scale; empty when there is none yet (the endpoints' own process starts after the
    workers).
    """
    status, text = get(port, "/scale")
    return dict(json.loads(text)) if status == 200 else {}


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Value by name (without the prefix) and sorted labels."""
    return {
        (sample.name.removeprefix("packhorse_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def metric(port: int, name: str, **labels: Any) -> float | None:
    """One value of /metrics; None when it is not there."""
    status, text = get(port, "/metrics")
    return samples(text).get((name, tuple(sorted(labels.items())))) if status == 200 else None
