"""Every metric, as rules and dashboards may use it, and a server that exposes all of them with plausible values."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from worker.observe.slab import CLAIM_BOUNDS, DURATION_BOUNDS, WAIT_BOUNDS

QUEUE = {"queue": ["default", "whatsapp"]}

#: name without prefix -> (type, label -> values)
METRICS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "messages_finished_total": ("counter", QUEUE | {"outcome": ["done", "retry", "snooze", "dead", "cancelled", "released", "lost"]}),
    "actor_messages_finished_total": ("counter", {"actor": ["reply", "remind"], "outcome": ["ok", "failed"]}),
    "message_wait_seconds": ("histogram", QUEUE),
    "message_duration_seconds": ("histogram", {}),
    "handler_seconds_total": ("counter", QUEUE),
    "claims_total": ("counter", {"result": ["hit", "empty", "error"]}),
    "claim_seconds": ("histogram", {}),
    "leases_rescued_total": ("counter", {}),
    "leases_lost_total": ("counter", {}),
    "worker_threads": ("gauge", {}),
    "worker_busy_threads": ("gauge", {}),
    "worker_processes": ("gauge", {}),
    "worker_draining": ("gauge", {}),
    "loop_tick_age_seconds": ("gauge", {"loop": ["pump", "heartbeat"]}),
    "db_errors_total": ("counter", {"class": ["unavailable", "conflict"]}),
    "listen_connected": ("gauge", {}),
    "process_restarts_total": ("counter", {"reason": ["crashed", "recycled"]}),
    "build_info": ("gauge", {"version": ["1.0.0"]}),
    "observability_errors_total": ("counter", {"part": ["fleet"]}),
    "queue_messages": ("gauge", QUEUE | {"state": ["pending", "delayed", "blocked", "running"]}),
    "queue_oldest_due_age_seconds": ("gauge", QUEUE),
    "queue_paused": ("gauge", QUEUE),
    "conversations_blocked": ("gauge", QUEUE),
    "dead_letters": ("gauge", QUEUE),
    "workers": ("gauge", {"state": ["running", "silent"]}),
    "partition_runway_seconds": ("gauge", {"table": ["message_archive"]}),
    "oldest_snapshot_age_seconds": ("gauge", {}),
    "table_dead_rows": ("gauge", {"table": ["message_queue"]}),
    "table_bytes": ("gauge", {"table": ["message_queue"]}),
    "fleet_age_seconds": ("gauge", {}),
    "schedule_lag_seconds": ("gauge", {"schedule": ["cleanup"]}),
    "schedule_last_success_timestamp_seconds": ("gauge", {"schedule": ["cleanup"]}),
    "maintenance_last_success_timestamp_seconds": ("gauge", {"task": ["sessions"]}),
    "maintenance_rows_total": ("counter", {"task": ["sessions"]}),
}
BOUNDS = {"message_wait_seconds": WAIT_BOUNDS, "message_duration_seconds": DURATION_BOUNDS, "claim_seconds": CLAIM_BOUNDS}
ZERO = {"queue_paused", "listen_connected", "worker_draining"}


def exposed_names() -> set[str]:
    """The names that a query can use: a histogram has three."""
    names = set()
    for name, (kind, _) in METRICS.items():
        names |= {f"packhorse_{name}{suffix}" for suffix in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    return names


def exposition(scrape: int) -> str:
    """The text of one scrape; counters grow from scrape to scrape."""
    lines = []
    for name, (kind, labels) in METRICS.items():
        lines += [f"# HELP packhorse_{name} See docs/observability.md.", f"# TYPE packhorse_{name} {kind}"]
        for pairs in _combinations(labels):
            if kind == "histogram":
                for bound in (*map(str, BOUNDS[name]), "+Inf"):
                    lines.append(f"packhorse_{name}_bucket{_labels([*pairs, ('le', bound)])} {scrape * 3}")
                lines.append(f"packhorse_{name}_sum{_labels(pairs)} {scrape}")
                lines.append(f"packhorse_{name}_count{_labels(pairs)} {scrape * 3}")
            else:
                lines.append(f"packhorse_{name}{_labels(pairs)} {scrape if kind == 'counter' else int(name not in ZERO)}")
    return "\n".join(lines) + "\n"


@contextmanager
def serve_metrics() -> Iterator[int]:
    """Serve /metrics on a free port of the loopback; the port."""
    scrapes = [0]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            scrapes[0] += 1
            body = exposition(scrapes[0]).encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, name="metrics")
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _combinations(labels: dict[str, list[str]]) -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = [[]]
    for name, values in labels.items():
        found = [[*pairs, (name, value)] for pairs in found for value in values]
    return found


def _labels(pairs: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in pairs) + "}" if pairs else ""
