"""[schedules], [retention], [partitions] and [gates] of packhorse.toml: every problem at once, by section and
field (SPEC W11, M6).
"""

from __future__ import annotations

import math

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker

from packhorse.schedules import registry, schedule
from packhorse.schedules.config import load_plan, seconds
from packhorse.schedules.registry import JOBS, PARTITIONS, RETENTION, declared
from packhorse.schedules.timetable.schedule import Schedule
from packhorse.worker.errors import ConfigError, InvalidArgument


@pytest.fixture
def plan_of(tmp_path):
    def load(text):
        path = tmp_path / "packhorse.toml"
        path.write_text(text)
        return load_plan({}, path)

    return load


@pytest.fixture
def problems_of(plan_of):
    def find(text):
        with pytest.raises(ConfigError) as refused:
            plan_of(text)
        return [problem.split("packhorse.toml: ", 1)[1] for problem in refused.value.problems]

    return find


def test_without_a_file_the_shipped_policies_are_the_plan(tmp_path):
    plan = load_plan({}, tmp_path / "none.toml")
    assert (plan.retention, plan.partitions, plan.jobs) == (RETENTION, PARTITIONS, JOBS)
    names = [entry.name for entry in plan.timetable()]
    assert len(names) == len(set(names)) == len(RETENTION) + 2 * len(PARTITIONS) + len(JOBS)
    assert {entry.name for entry in plan.timetable({"job.dead_workers"})} == set(names) - {"job.dead_workers"}


def test_every_kind_of_policy_is_read_with_its_durations(plan_of):
    plan = plan_of("""
        [retention.old-orders]
        table = "shop.orders"
        column = "done_at"
        keep = "1w2d"
        budget = "90s"
        [retention.dead_letters]
        keep = "60d"
        [retention.message_results]
        enabled = false
        [partitions.events]
        column = "created_at"
        every = "month"
        ahead = 5
        keep = 12
        grace = 3600
        [gates]
        queue_latency_seconds = inf
        [schedules.report]
        message_type = "send_report"
        every = "1h30m"
        jitter = "30s"
        payload = {kind = "daily"}
        """)
    by_name = {policy.name: policy for policy in plan.retention}
    assert (by_name["old-orders"].keep_seconds, by_name["old-orders"].budget_seconds) == (9 * 86400, 90)
    letters = by_name["dead_letters"]
    # changed, not replaced
    assert (letters.keep_seconds, letters.where, letters.source) == (
        60 * 86400,
        "not blocks_conversation",
        "toml",
    )
    assert "message_results" not in by_name
    assert plan.partitions[-1].grace_seconds == 3600 and plan.gates.queue_latency_seconds == math.inf
    (report,) = plan.schedules
    assert (report.every_seconds, report.jitter_seconds, report.payload, report.source) == (
        5400,
        30,
        {"kind": "daily"},
        "toml",
    )


ORDERS = '[retention.orders]\ncolumn = "done_at"\nkeep = "7d"\n'
EVENTS = '[partitions.events]\ncolumn = "created_at"\nevery = "month"\nahead = 5\nkeep = 12\n'
REPORT = '[schedules.report]\nmessage_type = "send"\ncron = "* * * * *"\n'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ORDERS + "btach = 5", "[retention.orders]: btach: there is no such field; did you mean 'batch'?"),
        (ORDERS + 'source = "sql"', "[retention.orders]: source: there is no such field"),
        (ORDERS + 'name = "other"', "[retention.orders]: name: there is no such field"),
        (ORDERS + 'batch = "many"', "[retention.orders]: batch: must be a whole number, not str"),
        (ORDERS + "batch = true", "[retention.orders]: batch: must be a whole number, not bool"),
        (ORDERS + "batch = 0", "[retention.orders]: batch: must be between 1 and 100000"),
        (ORDERS + "where = 5", "[retention.orders]: where: must be a text"),
        (ORDERS + 'where = "true; drop table x"', "[retention.orders]: where: must be one SQL expression"),
        (ORDERS + 'where = ""', "[retention.orders]: where: must be one SQL expression"),
        (ORDERS + 'table = "a.b.c"', "[retention.orders]: table: 'a.b.c' is not a name"),
        (ORDERS + 'table = "x; drop table y"', "[retention.orders]: table: "),
        (ORDERS + 'cron = "0 0 30 2 *"', "[retention.orders]: cron: '0 0 30 2 *' never happens"),
        (
            ORDERS + 'time_zone = "Africa/Kigaly"',
            "[retention.orders]: time_zone: 'Africa/Kigaly' is not a time zone. Did you mean 'Africa/Kigali'?",
        ),
        (ORDERS + 'enabled = "no"', "[retention.orders]: enabled: must be true or false, not str"),
        (ORDERS + 'budget = "soon"', "[retention.orders]: budget: 'soon' is not a duration"),
        (ORDERS + "pause_ratio = nan", "[retention.orders]: pause_ratio: must be between"),
        ('[retention.orders]\ncolumn = "done_at"', "[retention.orders]: keep: missing"),
        ("[retention.orders]", "[retention.orders]: column, keep: missing"),
        ('[retention."a b"]\ncolumn = "c"\nkeep = 5', "[retention.a b]: name: 'a b' is not a name"),
        ("[retention]\norders = 5", "[retention.orders]: must be a table"),
        ("retention = 5", "[retention]: must be tables"),
        (
            "[retention.dead_leters]\nenabled = false",
            "[retention.dead_leters]: there is no 'dead_leters' to switch off; did you mean 'dead_letters'?",
        ),
        ('[retention.dead_letters]\nkeep = "-5d"', "[retention.dead_letters]: keep: '-5d' is not a duration"),
        (EVENTS.replace("month", "year"), "[partitions.events]: every: 'year' is not known"),
        (EVENTS.replace("ahead = 5", "ahead = 0"), "[partitions.events]: ahead: must be between 1 and 400"),
        (EVENTS.replace("keep = 12", 'keep = "1y"'), "[partitions.events]: keep: must be a whole number"),
        (EVENTS + 'drop_cron = "daily"', "[partitions.events]: drop_cron: 'daily' has 1 fields"),
        (REPORT + 'missed = "never"', "[schedules.report]: missed: 'never' is not known"),
        (REPORT + 'missed = "all"', "[schedules.report]: overlap: 'skip' would run one"),
        (REPORT + 'every = "5m"', "[schedules.report]: cron: give either cron or every"),
        (REPORT + "payload = [1]", "[schedules.report]: payload: must be a table, not list"),
        (REPORT + "payload = {at = 2026-01-01}", "[schedules.report]: payload: is not JSON"),
        (REPORT + 'queue = "a b"', "[schedules.report]: queue: 'a b' is not a name"),
        (REPORT + 'queue = "packhorse"', "[schedules.report]: the queue 'packhorse' is for maintenance"),
        (REPORT.replace("report", '"a b"', 1), "[schedules.a b]: name: 'a b' is not a name"),
        (
            REPORT.replace("report", '"retention.dead_letters"', 1),
            "[schedules.retention.dead_letters]: this name belongs to a maintenance task",
        ),
        (
            REPORT.replace("report", '"job.due_reminders"', 1),
            "[schedules.job.due_reminders]: this name belongs",
        ),
        (
            ORDERS + ORDERS.replace("orders", "again") + 'table = "orders"',
            "[retention.again] and [retention.orders]: both remove from orders",
        ),
        (
            '[retention.archive]\ntable = "message_archive"\ncolumn = "finished_at"\nkeep = "9d"',
            "[retention.archive] and [partitions.message_archive]: both end the rows of message_archive",
        ),
        (
            "[gates]\nqueue_latency = 5",
            "[gates]: queue_latency: there is no such field; did you mean 'queue_latency_seconds'?",
        ),
        ("[gates]\nqueue_latency_seconds = -1", "[gates]: queue_latency_seconds: must be 0 or more"),
        (
            "[gates]\nqueue_latency_seconds = false",
            "[gates]: queue_latency_seconds: must be a number, not bool",
        ),
        ("[gates]\nqueue_latency_seconds = nan", "[gates]: queue_latency_seconds: must be 0 or more"),
        ("gates = 5", "[gates]: must be a table"),
    ],
)
def test_each_problem_names_its_section_and_field(problems_of, text, problem):
    found = problems_of(text)
    assert len(found) == 1 and found[0].startswith(problem), found


def test_all_problems_are_found_at_once(problems_of):
    found = problems_of(
        ORDERS + "btach = 5\n" + EVENTS + "grase = 1\n" + REPORT + 'missed = "no"\n[gates]\nlag = 1'
    )
    assert [problem.split("]")[0] for problem in found] == [
        "[retention.orders",
        "[partitions.events",
        "[schedules.report",
        "[gates",
    ]


def test_one_problem_of_a_section_hides_no_other(problems_of):
    found = problems_of(
        '[retention.orders]\ncolumn = "a b"\nkeep = "soon"\nbtach = 5\ncron = "never"\ntime_zone = "Nowhere"\nbudget = "-1s"\nwhere = ";"\n'
        '[partitions.events]\nevery = "year"\nahead = 0\nmake_cron = "x"\n'
        '[schedules.report]\ncron = "* * *"\nmissed = "no"\npriority = 99\n'
        '[schedules.other]\nmessage_type = "x"\nevery = "often"\njitter = "much"\n'
        "[gates]\nlag = 1\nconnections_ratio = -1\n"
    )
    named = {tuple(problem.split(": ")[:2]) for problem in found}
    assert named == {
        *(
            ("[retention.orders]", field)
            for field in ("column", "keep", "btach", "cron", "time_zone", "budget", "where")
        ),
        *(("[partitions.events]", field) for field in ("column, keep", "every", "ahead", "make_cron")),
        *(("[schedules.report]", field) for field in ("message_type", "cron", "missed", "priority")),
        *(("[schedules.other]", field) for field in ("every", "jitter")),
        *(("[gates]", field) for field in ("lag", "connections_ratio")),
    }
    assert len(found) == len(named), found


def test_tables_of_the_same_name_in_two_schemas_do_not_fight(plan_of):
    plan_of(ORDERS + 'table = "a.orders"\n' + ORDERS.replace("orders", "others") + 'table = "b.orders"')
    plan_of(ORDERS.replace("orders", "mine") + 'table = "shop.messages"')


def test_a_file_that_is_no_toml_is_one_problem(tmp_path):
    path = tmp_path / "packhorse.toml"
    for content in (b"[retention", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="not readable as TOML"):
            load_plan({}, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("90s", 90), ("1h30m", 5400), ("7d", 604800), ("2w", 1209600), ("1.5h", 5400), (5, 5), (0.5, 0.5)],
)
def test_durations(text, expected):
    assert seconds("keep", text) == expected


@pytest.mark.parametrize("text", ["", "5", "5 d", "d", "-1d", "1y", "1d1", True, [], None, {}])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(InvalidArgument, match="keep"):
        seconds("keep", text)


def test_schedules_in_code_are_declared_beside_an_actor_and_toml_takes_their_place(plan_of, monkeypatch):
    monkeypatch.setattr(registry, "declared", {})
    monkeypatch.setattr("packhorse.schedules.config.declared", registry.declared)
    broker = StubBroker()

    @dramatiq.actor(broker=broker, queue_name="reports")
    def send_report(kind: str) -> None: ...

    entry = schedule(send_report, cron="0 7 * * mon-fri", payload={"kind": "daily"})
    assert (entry.name, entry.queue, entry.source) == ("send_report", "reports", "code")
    # a module imported twice
    assert schedule(send_report, cron="0 7 * * mon-fri", payload={"kind": "daily"}) == entry
    with pytest.raises(InvalidArgument, match="declared twice"):
        schedule(send_report, cron="0 8 * * *")
    schedule(send_report, name="weekly", every_seconds=604800)
    with pytest.raises(InvalidArgument, match="cron"):
        schedule(send_report, name="bad", cron="61 * * * *")
    plan = plan_of('[schedules.send_report]\nmessage_type = "send_report"\ncron = "0 9 * * *"')
    assert [(found.name, found.source) for found in plan.schedules] == [
        ("weekly", "code"),
        ("send_report", "toml"),
    ]


def test_toml_switches_off_a_schedule_of_code(tmp_path, monkeypatch):
    monkeypatch.setitem(declared, "reports", Schedule("reports", "send_report", cron="0 7 * * *"))
    config = tmp_path / "packhorse.toml"
    config.write_text("")
    assert [entry.name for entry in load_plan({}, config).schedules] == ["reports"]
    config.write_text("[schedules.reports]\nenabled = false\n")
    assert load_plan({}, config).schedules == ()


def test_what_works_without_configuration_is_told_what_it_says(tmp_path):
    """Workers and cleanup_old_messages() follow the scheduler's configuration; what they could not follow
    they leave alone.
    """
    path = tmp_path / "packhorse.toml"
    path.write_text("")
    week, month = 7 * 86400.0, 30 * 86400.0
    shipped = load_plan({}, path).policies()
    assert shipped == {
        "retention.processed_messages": {"keep_seconds": week},
        "retention.message_dedup": {"keep_seconds": 0},
        "retention.message_results": {"keep_seconds": 0},
        "retention.dead_letters": {"keep_seconds": month},
        "partitions.messages.make": {"ahead": 5},
        "partitions.message_archive.drop": {"keep_days": 0},
    }
    path.write_text(
        '[retention.processed_messages]\nkeep = "90d"\n[retention.dead_letters]\nenabled = false\n'
        "[retention.message_results]\nwhere = \"result_key like 'x%'\"\n[partitions.messages]\nahead = 2\n"
    )
    assert load_plan({}, path).policies() == shipped | {
        "retention.processed_messages": {"keep_seconds": 90 * 86400.0},
        "retention.dead_letters": {},
        "retention.message_results": {},
        "partitions.messages.make": {"ahead": 2},
    }
    path.write_text('[partitions.messages]\nevery = "week"\n')
    assert load_plan({}, path).policies()["partitions.messages.make"] == {}
    for text, told in (
        ("keep = 30", {"keep_days": 30}),
        ('export_dir = "/x"', {}),
        ('grace = "7d"', {}),
        ("enabled = false", {}),
        ("ahead = 9", {"keep_days": 0}),
    ):
        path.write_text(f"[partitions.message_archive]\n{text}\n")
        assert load_plan({}, path).policies()["partitions.message_archive.drop"] == told, text
