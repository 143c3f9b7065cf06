"""Documentation is part of the product: what exists is documented, and what is documented exists."""

from __future__ import annotations

import re
from pathlib import Path

from packhorse.schedules.config import Plan
from packhorse.schedules.policies import Gates
from packhorse.schedules.registry import JOBS, PARTITIONS, RETENTION
from packhorse.worker import exits
from packhorse.worker.config import Settings, load_settings
from packhorse.worker.fleet.exporter import Exporter
from packhorse.worker.observe import slab
from packhorse.worker.observe.board import PARTS, RESTARTS, Board
from packhorse.worker.observe.events import EVENTS
from packhorse.worker.observe.metrics import DEFINITIONS
from packhorse.worker.states import TRANSITIONS

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def test_every_setting_is_documented_with_its_default():
    text = (DOCS / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]*) \|", text.split("Rules across settings")[0], re.MULTILINE))
    assert set(rows) == set(Settings.model_fields)
    for name, field in Settings.model_fields.items():
        expected = "none" if field.default is None else "empty" if field.default == () else str(field.default)
        assert rows[name].strip() == expected, name


def test_every_setting_has_a_sentence():
    assert [name for name, field in Settings.model_fields.items() if not (field.description or "").rstrip().endswith((".", ";"))] == []


def test_the_lifecycle_table_is_the_transition_table():
    rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \|", (DOCS / "lifecycle.md").read_text(), re.MULTILINE)
    documented = {(source, verb): target for source, verb, target in rows if source != "from"}
    assert documented == {(str(s), verb): str(t) for s, verbs in TRANSITIONS.items() for verb, t in verbs.items()}


def test_every_function_and_view_of_the_schema_is_documented():
    text = (DOCS / "sql-api.md").read_text()
    source = "\n".join(path.read_text() for path in (ROOT / "migrations").glob("0*.sql"))
    names = set(re.findall(r"^create (?:or replace )?(?:function|view) (\w+)", source, re.MULTILINE))
    assert sorted(name for name in names if f"`{name}" not in text) == []


def test_every_queue_setting_is_documented():
    text = (DOCS / "configuration.md").read_text().split("## Queue settings")[1]
    source = (ROOT / "migrations" / "0005_create_queue_functions.sql").read_text()
    known = re.findall(r"'(\w+)'", source.split("v_known constant text[] := array[")[1].split("];")[0])
    assert [name for name in known if f"`{name}`" not in text] == []


def test_every_maintenance_task_has_a_page_that_tells_when_it_runs():
    plan = Plan(RETENTION, PARTITIONS, JOBS, Gates(), ())
    pages = {page.stem: page.read_text() for page in (DOCS / "jobs").glob("*.md")}
    assert set(pages) == set(plan.tasks())
    crons = {entry.name: entry.cron for entry in plan.timetable()}
    assert [task for task, text in pages.items() if f"`{crons[task]}`" not in text or not text.startswith(f"# `{task}`")] == []
    assert [task for task in pages if f"(jobs/{task}.md)" not in (DOCS / "maintenance.md").read_text()] == []


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
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (counter|gauge|histogram) \|([^|]*)\|", text, re.MULTILINE)}
    assert set(rows) == set(DEFINITIONS)
    for name, definition in DEFINITIONS.items():
        assert (rows[name][0], rows[name][1].strip()) == (definition.kind, ", ".join(f"`{label}`" for label in definition.labels)), name


def test_every_value_of_a_fixed_label_is_documented():
    text = (DOCS / "observability.md").read_text()
    values = (*slab.OUTCOMES, *slab.ACTOR_OUTCOMES, *slab.CLAIM_RESULTS, *slab.DB_ERRORS, *slab.LOOPS, *RESTARTS, *PARTS)
    assert [value for value in values if f"`{value}`" not in text] == []


def test_every_endpoint_is_documented():
    text = (DOCS / "observability.md").read_text()
    routes = Exporter(load_settings({}), Board(1)).routes
    assert set(re.findall(r"^\| `(/\w+)` \|", text, re.MULTILINE)) == set(routes)


def test_every_event_is_documented_with_its_level_and_keys():
    text = (DOCS / "observability.md").read_text().split("## Logs")[1]
    rows = {row[0]: row[1:] for row in re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\| (.*) \|$", text, re.MULTILINE)}
    assert set(rows) == set(EVENTS)
    for name, event in EVENTS.items():
        level, keys, meaning = rows[name]
        assert (level, keys.strip(), meaning) == (event.level, ", ".join(f"`{key}`" for key in event.keys), event.meaning), name
