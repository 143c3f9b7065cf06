"""Documentation is part of the product: what exists is documented, and what is documented exists."""

from __future__ import annotations

import re
from pathlib import Path

from packhorse.schedules.config import Plan
from packhorse.schedules.maintenance.partitions import DROPPED_BY_FUNCTION
from packhorse.schedules.maintenance.policies import Gates, Partitions, Retention
from packhorse.schedules.registry import JOBS, PARTITIONS, RETENTION, Job
from packhorse.worker import exits
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.fleet.exporter import Exporter
from packhorse.worker.observe import process_stats as stats
from packhorse.worker.observe.events import EVENTS
from packhorse.worker.observe.fleet_stats import PARTS, RESTARTS, FleetStats
from packhorse.worker.observe.metric_table import DEFINITIONS
from packhorse.worker.states import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SHIPPED = Plan(RETENTION, PARTITIONS, JOBS, Gates(), ())


def jobs_page(text: str) -> str:
    """docs/jobs.md with its tables as the registry has them; the column `what it does` is kept."""
    before, _, rest = text.partition("## The queue's own\n")
    ours, _, rest = rest.partition("## The conversation platform's\n")
    theirs, _, after = rest.partition("## Look, run, change\n")
    sentences = _sentences(text)
    ours, theirs = (
        section.partition("| task |")[0] + _jobs_table(optional, sentences)
        for section, optional in ((ours, False), (theirs, True))
    )
    return f"{before}## The queue's own\n{ours}\n## The conversation platform's\n{theirs}\n## Look, run, change\n{after}"


def _sentences(text: str) -> dict[str, str]:
    """What each task does, by task, as the page says it."""
    return dict(re.findall(r"^\| `([a-z_.]+)` \| `[^|]*` \| ([^|]*) \|", text, re.MULTILINE))


def _jobs_table(optional: bool, sentences: dict[str, str]) -> str:
    crons = {entry.name: entry.cron for entry in SHIPPED.timetable()}
    lines = ["| task | when | what it does | how long it keeps | role |", "|---|---|---|---|---|"]
    for task, policy in SHIPPED.tasks().items():
        if optional == (policy.needs is not None if isinstance(policy, Job) else policy.optional):
            lines.append(
                f"| `{task}` | `{crons[task]}` | {sentences.get(task, '')} | {_kept(task, policy)} | {_role(task, policy)} |"
            )
    return "\n".join(lines) + "\n"


def _kept(task: str, policy: Retention | Partitions | Job) -> str:
    """How long rows stay, as the policy says it."""
    if isinstance(policy, Job):
        return ""
    if isinstance(policy, Partitions):
        if task == policy.make_task:
            return f"{policy.ahead} {policy.every}s ahead, by `{policy.column}`"
        return f"{policy.keep} {policy.every}s{', or the longest `keep_done`' if policy.keep_setting else ''}, by `{policy.column}`"
    days = policy.keep_seconds / 86400
    kept = f"{days:g} days after `{policy.column}`" if days else f"until `{policy.column}`"
    return kept + (f", where `{policy.where}`; all others stay" if policy.where else "")


def _role(task: str, policy: Retention | Partitions | Job) -> str:
    if not isinstance(policy, Partitions):
        return "`packhorse_worker`"
    by_function = task == policy.make_task or policy.table in DROPPED_BY_FUNCTION
    return "the owner, or a function with its rights" if by_function else "the owner (`maintenance_url`)"


def test_every_setting_is_documented_with_its_default():
    text = (DOCS / "configuration.md").read_text()
    rows = dict(
        re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text.split("Rules across settings")[0], re.MULTILINE)
    )
    assert set(rows) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        expected = "none" if field.default is None else "empty" if field.default == () else str(field.default)
        assert rows[name].strip() == expected, name


def test_every_setting_has_a_sentence():
    assert [
        name
        for name, field in Settings.model_fields.items()
        if not (field.description or "").rstrip().endswith((".", ";"))
    ] == []


def test_the_lifecycle_table_is_the_transition_table():
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \|", (DOCS / "lifecycle.md").read_text(), re.MULTILINE)
    documented = {(source, verb): target for source, verb, target in rows if source != "from"}
    assert documented == {
        (str(s), verb): str(t) for s, verbs in TRANSITIONS.items() for verb, t in verbs.items()
    }


def test_every_function_and_view_of_the_schema_is_documented():
    text = (DOCS / "sql-api.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "migrations").rglob("*.sql"))
    names = set(re.findall(r"^create or replace (?:function|view) packhorse\.(\w+)", source, re.MULTILINE))
    assert len(names) > 150
    assert sorted(name for name in names if f"`{name}" not in text) == []


def test_every_queue_setting_is_documented():
    text = (DOCS / "configuration.md").read_text().split("## Queue settings")[1]
    source = (ROOT / "migrations" / "functions" / "queues.sql").read_text()
    known = re.findall(r"'(\w+)'", source.split("v_known constant text[] := array[")[1].split("];")[0])
    assert [name for name in known if f"`{name}`" not in text] == []


def test_jobs_are_those_of_the_registry():
    text = (DOCS / "jobs.md").read_text()
    assert text == jobs_page(text), "python -m tests.test_documentation makes the tables anew"


def test_every_job_says_what_it_does():
    rows = _sentences((DOCS / "jobs.md").read_text())
    assert [task for task in SHIPPED.tasks() if not rows.get(task, "").endswith(".")] == []


def test_exit_codes_are_documented():
    text = (DOCS / "operations.md").read_text()
    for name, value in vars(exits).items():
        if name.startswith("EXIT_"):
            assert re.search(rf"^\| {value} \|", text, re.MULTILINE), f"{name} = {value}"


def test_documents_link_to_files_that_exist():
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_metric_is_documented_with_its_type_and_labels():
    text = (DOCS / "observability.md").read_text()
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", text, re.MULTILINE)
    }
    assert set(rows) == set(DEFINITIONS)
    for name, definition in DEFINITIONS.items():
        assert (rows[name][0], rows[name][1].strip()) == (
            definition.kind,
            ", ".join(f"`{label}`" for label in definition.labels),
        ), name


def test_every_value_of_a_fixed_label_is_documented():
    text = (DOCS / "observability.md").read_text()
    values = (
        *stats.OUTCOMES,
        *stats.ACTOR_OUTCOMES,
        *stats.CLAIM_RESULTS,
        *stats.DB_ERRORS,
        *stats.LOOPS,
        *RESTARTS,
        *PARTS,
    )
    assert [value for value in values if f"`{value}`" not in text] == []


def test_every_endpoint_is_documented():
    text = (DOCS / "observability.md").read_text()
    routes = Exporter(load_settings({}), FleetStats(1)).routes
    assert set(re.findall(r"^\| `(/\w+)` \|", text, re.MULTILINE)) == set(routes)


def test_every_event_is_documented_with_its_level_and_keys():
    text = (DOCS / "observability.md").read_text().split("## Logs")[1]
    rows = {
        row[0]: row[1:]
        for row in re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (.*) \|$", text, re.MULTILINE)
    }
    assert set(rows) == set(EVENTS)
    for name, event in EVENTS.items():
        level, keys, meaning = rows[name]
        assert (level, keys.strip(), meaning) == (
            event.level,
            ", ".join(f"`{key}`" for key in event.keys),
            event.meaning,
        ), name


if __name__ == "__main__":
    (DOCS / "jobs.md").write_text(jobs_page((DOCS / "jobs.md").read_text()))
