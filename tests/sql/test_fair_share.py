"""Fair share: the keys of a queue take turns (SPEC Q8c); limits per key pass over what is full (SPEC Q8)."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest

from tests.sql.client import HOLDER, OTHER, Sql

TAKEN = """
select coalesce(m.fairness_key, m.concurrency_key, '-') from claim_messages(%s, '{q}', %s) c join message_queue m using (id)
order by c.id
"""
HINTS = "select hints from complete_and_claim_messages('{}', '{}', %s, '{q}', 10) where hints is not null"


def fill(sql: Sql, counts: dict[str, int], key: str = "fairness_key", **columns: object) -> None:
    """So many due messages of each key, in this order; "-": without a key."""
    names = ", ".join(columns)
    for name, count in counts.items():
        sql.rows(
            f"insert into message_queue (queue, message_type, {key}{', ' if names else ''}{names}) "
            f"select 'q', 'effect', nullif(%s, '-'){', %s' * len(columns)} from generate_series(1, %s)",
            name,
            *columns.values(),
            count,
        )


def taken(sql: Sql, limit: int) -> list[str]:
    """The keys of what one claim took, by id."""
    return [row[0] for row in sql.rows(TAKEN, HOLDER, limit)]


def fair(sql: Sql, **settings: object) -> None:
    sql.set_queue(fair_share=True, **settings)


def test_tenants_take_turns_one_message_each(sql: Sql) -> None:
    fair(sql)
    fill(sql, {"a": 4, "b": 2, "c": 1})
    assert [taken(sql, 1)[0] for _ in range(7)] == ["a", "b", "c", "a", "b", "a", "a"]
    assert taken(sql, 1) == []


def test_without_fair_share_the_oldest_comes_first(sql: Sql) -> None:
    fill(sql, {"b": 2, "a": 2})
    assert [taken(sql, 1)[0] for _ in range(4)] == ["b", "b", "a", "a"]


def test_a_batch_is_shared_and_what_others_leave_goes_to_whom_has_more(sql: Sql) -> None:
    fair(sql)
    fill(sql, {"big": 1000, "few": 3, "one": 1})
    assert Counter(taken(sql, 10)) == {"big": 6, "few": 3, "one": 1}
    assert Counter(taken(sql, 10)) == {"big": 10}


def test_a_thousand_tenants_each_come_within_a_round(sql: Sql) -> None:
    fair(sql)
    fill(sql, {f"t{number:03}": 2 for number in range(300)})
    fill(sql, {"a big one": 1000})
    first = [key for _ in range(31) for key in taken(sql, 10)]
    assert len(set(first)) == 301 and max(Counter(first).values()) <= 2


def test_priority_counts_within_a_tenant(sql: Sql) -> None:
    fair(sql)
    low = sql.enqueue(fairness_key="a", priority=9)
    high = sql.enqueue(fairness_key="a", priority=2)
    other = sql.enqueue(fairness_key="b", priority=10)
    assert [sql.claim_one().id for _ in range(3)] == [high, other, low]


def test_all_messages_without_a_tenant_are_one_share(sql: Sql) -> None:
    fair(sql)
    fill(sql, {"-": 6, "a": 6, "b": 6})
    assert Counter(taken(sql, 9)) == {"-": 3, "a": 3, "b": 3}
    assert Counter(taken(sql, 1)[0] for _ in range(9)) == {"-": 3, "a": 3, "b": 3}


@pytest.mark.parametrize("backlog", [10, 1000])
def test_messages_without_a_key_are_found_behind_and_among_those_that_wait_for_one(
    sql: Sql, backlog: int
) -> None:
    sql.set_queue(max_concurrency_per_key=1)
    fill(sql, {"full": backlog}, "concurrency_key")
    assert taken(sql, 10) == ["full"]
    fill(sql, {"-": 5})
    fill(sql, {"full": backlog}, "concurrency_key")
    fill(sql, {"-": 5})
    got = [key for _ in range(20) for key in taken(sql, 2)]
    assert got == ["-"] * 10


def test_another_session_goes_on_where_the_last_one_was(clients: Callable[..., Sql]) -> None:
    first, second = clients(), clients()
    fair(first)
    fill(first, {"a": 5, "b": 5, "c": 5})
    assert taken(first, 1) == ["a"]
    assert taken(second, 1) == ["b"]
    assert [taken(second, 1)[0] for _ in range(3)] == ["c", "a", "b"]
    assert taken(first, 1) == ["b"]  # each session goes round by itself


def test_two_claims_at_once_take_different_messages_and_wait_for_nothing(clients: Callable[..., Sql]) -> None:
    first, second = clients(), clients()
    fair(first)
    fill(first, {"a": 4, "b": 4})
    with first.connection.transaction():
        one = {lease.id for lease in first.claim(4)}
        second.rows("set lock_timeout = '300ms'")
        two = {lease.id for lease in second.claim(4, holder=OTHER)}
        assert len(one) == len(two) == 4 and not one & two


def test_what_comes_back_takes_its_place_in_its_tenants_turn(sql: Sql) -> None:
    fair(sql)
    first = sql.claimed(fairness_key="a")
    fill(sql, {"b": 3})
    sql.value("select snooze_message(%s, %s, interval '0')", first.id, first.token)
    assert [taken(sql, 1)[0] for _ in range(2)] == ["b", "a"]
    assert taken(sql, 1) == ["b"]
    second = sql.claimed(fairness_key="a")
    sql.value("select release_message(%s, %s)", second.id, second.token)
    assert taken(sql, 1) == ["b"]
    lease = sql.claim_one()
    assert lease.id == second.id
    sql.fail(lease)
    sql.due_now()
    fill(sql, {"b": 1})
    assert [taken(sql, 1)[0] for _ in range(2)] == ["b", "a"]


def test_messages_for_later_and_expired_ones_give_their_tenant_no_turn(sql: Sql) -> None:
    fair(sql)
    sql.enqueue(fairness_key="a", priority=1, delay="1 hour")
    due = sql.enqueue(fairness_key="a", priority=2)
    sql.enqueue(fairness_key="b", delay="1 hour")
    sql.enqueue(fairness_key="c", delay="-1 hour", expires_at="2020-01-01")
    assert [lease.id for lease in sql.claim(10)] == [due]


def test_conversations_keep_their_order_and_do_not_jump_the_turn(sql: Sql) -> None:
    fair(sql)
    for _ in range(3):
        sql.enqueue(fairness_key="a", conversation_key="talk")
    fill(sql, {"b": 3})
    lease = sql.claim_one()
    assert lease.conversation == "talk" and taken(sql, 1) == ["b"]
    assert taken(sql, 1) == ["b"]  # the others of the conversation wait
    answer = sql.rows(
        "select id, hints from complete_and_claim_messages(array[%s::bigint], array[%s::bigint], %s, '{q}', 1)",
        lease.id,
        lease.token,
        HOLDER,
    )
    assert [row[1] for row in answer] == [None]  # nothing to pass as p_first
    assert sql.state(answer[0][0]) == "running"


def test_a_tenants_waiting_conversations_hide_neither_its_others_nor_other_tenants(sql: Sql) -> None:
    fair(sql)
    for number in range(40):
        for _ in range(2):
            sql.enqueue(fairness_key="a", conversation_key=f"talk {number}")
    running = sql.claim(40)
    for number in range(40):  # pending, each behind one that runs
        sql.enqueue(fairness_key="a", conversation_key=f"talk {number}")
    last = sql.enqueue(fairness_key="a")
    assert [lease.id for lease in sql.claim(1)] == [last]
    fill(sql, {"b": 1})
    assert taken(sql, 1) == ["b"]
    assert len(sql.complete(*running)) == 40
    assert len(sql.claim(100)) == 40


@pytest.mark.parametrize("settings", [{}, {"max_concurrency_per_key": 1}])
def test_one_message_though_a_later_one_of_its_conversation_is_met_first(sql: Sql, settings: dict) -> None:
    fair(sql, **settings)
    keys = {"conversation_key": "talk", "concurrency_key": "k"}
    first = sql.enqueue(**keys, delay="-1 minute")
    sql.enqueue(**keys, delay="-1 hour")
    assert [lease.id for lease in sql.claim(1)] == [first]
    assert sql.claim(10) == []


def test_a_limit_per_key_holds_where_a_later_message_of_a_conversation_is_met_first(sql: Sql) -> None:
    fair(sql, max_concurrency_per_key=1)
    for talk in ("one", "two"):
        for delay in ("-1 minute", "-1 hour"):
            sql.enqueue(conversation_key=talk, concurrency_key="k", delay=delay)
    assert len(sql.claim(10)) == 1


def test_an_operator_turns_it_on_and_off_while_messages_wait(sql: Sql) -> None:
    fill(sql, {"b": 4, "a": 4})
    assert taken(sql, 2) == ["b", "b"]
    fair(sql)
    assert sorted(taken(sql, 2)) == ["a", "b"]
    sql.set_queue(fair_share=False)
    assert taken(sql, 3) == ["b", "a", "a"]


def test_a_paused_queue_and_a_slice_of_a_sweep_start_nothing(sql: Sql) -> None:
    fair(sql)
    fill(sql, {"a": 2})
    assert (
        sql.rows(
            "select id from complete_and_claim_messages('{}', '{}', %s, '{q}', 1, p_until => %s) where hints is null",
            HOLDER,
            ["2999-01-01"] * 10,
        )
        == []
    )
    sql.rows("select pause_queue('q')")
    assert taken(sql, 1) == []
    sql.rows("select resume_queue('q')")
    assert taken(sql, 1) == ["a"]


@pytest.mark.parametrize("settings", [{}, {"max_concurrency_per_key": 5}])
def test_a_tenant_of_another_queue_is_another(sql: Sql, settings: dict) -> None:
    sql.rows("select declare_queue('r')")
    sql.rows("select set_queue('r', %s)", json.dumps({"fair_share": True, **settings}))
    fair(sql, **settings)
    ids = {
        queue: [sql.enqueue(queue, fairness_key="a", concurrency_key="k") for _ in range(2)] for queue in "qr"
    }
    assert [lease.id for lease in sql.claim(10)] == ids["q"]


def test_a_queue_of_tenants_beside_an_ordinary_one(sql: Sql) -> None:
    sql.rows("select declare_queue('r')")
    fair(sql)
    fill(sql, {"a": 3, "b": 3})
    plain = [sql.enqueue("r") for _ in range(3)]
    rows = sql.rows("select id, queue from claim_messages(%s, '{q,r}', 4)", HOLDER)
    assert Counter(row[1] for row in rows) == {"q": 4}
    rows = sql.rows("select id, queue from claim_messages(%s, '{r,q}', 4)", HOLDER)
    assert [row[0] for row in rows if row[1] == "r"] == plain and len(rows) == 4


def test_inside_a_tenant_full_keys_are_passed_over(sql: Sql) -> None:
    fair(sql, max_concurrency_per_key=1)
    for _ in range(3):
        sql.enqueue(fairness_key="a", concurrency_key="x")
    sql.enqueue(fairness_key="a", concurrency_key="y")
    sql.enqueue(fairness_key="b", concurrency_key="x")
    sql.enqueue(fairness_key="b")
    keys = sql.rows(
        "select m.concurrency_key from claim_messages(%s, '{q}', 10) c join message_queue m using (id)",
        HOLDER,
    )
    assert Counter(row[0] for row in keys) == {"x": 1, "y": 1, None: 1}


def test_a_tenant_and_a_key_of_one_name_are_two(sql: Sql) -> None:
    fair(sql, max_concurrency_per_key=1)
    fill(sql, {"same": 3}, "concurrency_key")
    fill(sql, {"same": 3}, "fairness_key")
    assert len(taken(sql, 10)) == 4


def test_redrive_and_clone_keep_the_tenant(sql: Sql) -> None:
    fair(sql)
    lease = sql.claimed(fairness_key="a")
    sql.value("select bury_message(%s, %s)", lease.id, lease.token)
    clone = sql.value("select clone_id from clone_message(%s)", lease.id)
    sql.rows("select redrive_dead_letters(array[%s::bigint])", lease.id)
    assert [sql.live(ident)["fairness_key"] for ident in (lease.id, clone)] == ["a", "a"]


def test_explain_says_the_place_among_those_of_its_tenant_and_how_many_tenants_wait(sql: Sql) -> None:
    assert "turn" not in dict(sql.rows("select gate, passed from explain_message(%s)", sql.enqueue()))
    fair(sql)
    fill(sql, {"a": 2, "b": 1})
    ident = sql.enqueue(fairness_key="a")
    told = {gate: (passed, detail) for gate, passed, detail in explained(sql, ident)}
    assert told["turn"] == (False, "number 3 of its key; 1 other keys take turns with it")
    assert sql.rows("select count(*) from claim_messages(%s, '{q}', 4)", HOLDER) == [(4,)]
    assert explained(sql, ident, "turn")[0][1:] == (
        True,
        "number 1 of its key; 0 other keys take turns with it",
    )


def explained(sql: Sql, ident: int, gate: str | None = None) -> list[tuple]:
    return [
        row
        for row in sql.rows("select gate, passed, detail from explain_message(%s)", ident)
        if gate in (None, row[0])
    ]


# -- rate per key -------------------------------------------------------------------------------------
def test_a_rate_per_key_counts_starts_of_each_key_alone(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=2, rate_interval_per_key="1 hour")
    fill(sql, {"a": 5, "b": 1, "-": 3}, "concurrency_key")
    assert Counter(key for _ in range(9) for key in taken(sql, 1)) == {"a": 2, "b": 1, "-": 3}
    sql.rows("update key_rates set refilled_at = refilled_at - interval '31 minutes' where key = 'a'")
    assert taken(sql, 10) == ["a"]


def test_a_burst_per_key_is_what_a_bucket_holds(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=1, rate_interval_per_key="1 hour", rate_burst_per_key=3)
    fill(sql, {"a": 5, "b": 5}, "concurrency_key")
    assert Counter(taken(sql, 10)) == {"a": 3, "b": 3}


def test_a_retry_is_a_start_and_a_lock_by_hand_too(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=2, rate_interval_per_key="1 hour")
    lease = sql.claimed(concurrency_key="a")
    sql.fail(lease)
    sql.due_now()
    assert sql.value("select acquire_message_lock(%s, %s)", lease.id, HOLDER) is not None
    assert sql.value("select acquire_message_lock(%s, %s)", sql.enqueue(concurrency_key="a"), HOLDER) is None
    assert taken(sql, 1) == []


def test_the_hint_says_when_the_next_key_may_start(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=1, rate_interval_per_key="100 seconds")
    fill(sql, {"a": 2, "b": 1}, "concurrency_key")
    assert len(taken(sql, 10)) == 2
    assert 98 < sql.value(HINTS, HOLDER)["next_in"] <= 100
    sql.rows("delete from message_queue where state = 'pending'")
    assert sql.rows(HINTS, HOLDER) == []  # nobody waits for a token


def test_explain_says_when_the_key_has_a_token(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=1, rate_interval_per_key="1 hour")
    sql.claimed(concurrency_key="a")
    row = sql.row(
        "select passed, detail, earliest_start > clock_timestamp() + interval '59 minutes' as later "
        "from explain_message(%s) where gate = 'rate_limit_per_key'",
        sql.enqueue(concurrency_key="a"),
    )
    assert row == {"passed": False, "detail": "1 starts per 01:00:00 with this key", "later": True}


def test_a_changed_rate_begins_with_full_buckets_and_full_ones_are_removed(sql: Sql) -> None:
    sql.set_queue(rate_limit_per_key=1, rate_interval_per_key="1 hour")
    fill(sql, {"a": 3, "b": 2}, "concurrency_key")
    assert sorted(taken(sql, 10)) == ["a", "b"]
    sql.set_queue(rate_limit_per_key=2)
    assert sorted(taken(sql, 10)) == ["a", "a", "b"]
    sql.rows("update key_rates set refilled_at = refilled_at - interval '2 hours' where key = 'a'")
    assert sql.value("select cleanup_expired_windows()") == 1
    assert sql.rows("select key from key_rates") == [("b",)]


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"fair_share": "maybe"}, "fair_share"),
        ({"fair_share": None}, "fair_share"),
        ({"rate_limit_per_key": 0}, "rate_limit_per_key"),
        ({"rate_interval_per_key": "0"}, "rate_interval_per_key"),
        ({"rate_burst_per_key": -1}, "rate_burst_per_key"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_its_name(sql: Sql, settings: dict, field: str) -> None:
    assert sql.refused("select set_queue('q', %s::jsonb)", json.dumps(settings)) == ("PH001", field)


def test_a_tenant_is_1_to_500_characters(sql: Sql) -> None:
    assert sql.enqueue_refused(fairness_key="") == ("PH001", "fairness_key")
    assert sql.enqueue_refused(fairness_key="x" * 501) == ("PH001", "fairness_key")
    sql.enqueue(fairness_key="\U0001f600" * 500, concurrency_key="x" * 500)


# -- while nobody has a key ------------------------------------------------------------------------------
CLAIMED = "select id from claim_messages(%s, '{q}', %s, p_cursor => array_fill(clock_timestamp() - interval '1 minute', array[10]))"


def test_while_no_key_waits_a_claim_looks_from_its_cursor_and_with_the_first_key_it_goes_round(
    sql: Sql,
) -> None:
    fair(sql)
    old, young = sql.enqueue(delay="-1 hour"), sql.enqueue()
    assert sql.rows(CLAIMED, HOLDER, 10) == [(young,)]
    key = sql.enqueue(fairness_key="a", delay="1 hour")
    assert sql.rows(CLAIMED, HOLDER, 10) == [(old,)]  # of the keys it is not known how far anybody is
    sql.rows("update message_queue set run_at = clock_timestamp() where id = %s", key)
    assert sql.rows(CLAIMED, HOLDER, 10) == [(key,)]


def test_a_key_that_comes_while_others_are_without_one_has_its_share_at_once(sql: Sql) -> None:
    fair(sql)
    fill(sql, {"-": 50})
    assert taken(sql, 5) == ["-"] * 5
    fill(sql, {"a": 6})
    assert Counter(taken(sql, 6)) == {"-": 3, "a": 3}
    assert Counter(taken(sql, 6)) == {"-": 3, "a": 3}
    assert len(taken(sql, 50)) == 39 and taken(sql, 1) == []


def test_keys_that_come_and_go_starve_nobody_and_nothing_starts_twice(sql: Sql) -> None:
    chance = random.Random(5)
    fair(sql)
    fill(sql, {"-": 100})
    sent, started = 100, 0
    for _ in range(60):
        if chance.random() < 0.3:
            fill(sql, {chance.choice(["a", "b", "-"]): (many := chance.randint(1, 4))})
            sent += many
        got = taken(sql, chance.randint(1, 6))
        started += len(got)
        assert got or started == sent
    started += len(taken(sql, 1000))
    assert started == sent == sql.value("select count(*) from message_queue where state = 'running'")


@pytest.mark.parametrize(
    ("settings", "key", "told"),
    [({}, None, True), ({}, "a", False), ({"max_concurrency_per_key": 9}, None, False)],
)
def test_the_next_of_a_conversation_is_told_where_a_claim_has_a_cursor(
    sql: Sql, settings: dict, key: str | None, told: bool
) -> None:
    fair(sql, **settings)
    first, second = (sql.enqueue(conversation_key="c", fairness_key=key) for _ in range(2))
    lease = sql.claim_one()
    assert lease.id == first
    sql.enqueue(priority=1)
    assert sql.complete(lease)
    rows = sql.rows(
        "select hints -> 'promoted' from complete_and_claim_messages('{}', '{}', %s, '{q}', 1, p_first => array[%s::bigint]) "
        "where hints is not null",
        HOLDER,
        second,
    )
    assert [row[0] for row in rows if row[0]] == ([[second]] if told else [])


# -- what waits on a full key costs nothing ------------------------------------------------------------
@pytest.mark.parametrize(
    "limit", [{"max_concurrency_per_key": 1}, {"rate_limit_per_key": 1, "rate_interval_per_key": "1 hour"}]
)
@pytest.mark.parametrize("analysed", [False, True])
def test_a_backlog_of_a_full_key_is_not_walked(sql: Sql, limit: dict, analysed: bool) -> None:
    """With plans that were made while the table was empty, or for so many messages as are there."""
    sql.set_queue(**limit)
    assert taken(sql, 1) == []
    fill(sql, {"full": 5000}, "concurrency_key")
    if analysed:
        sql.rows("analyze message_queue")
    assert taken(sql, 10) == ["full"]
    fill(sql, {"a": 1, "b": 1, "z": 1}, "concurrency_key")
    touched = "select idx_tup_fetch from pg_stat_xact_user_tables where relname = 'message_queue'"
    before = sql.value(touched)
    assert taken(sql, 3) == ["a", "b", "z"]
    assert sql.value(touched) - before < 500  # a look of 300 for messages without a key


# -- shares over time -----------------------------------------------------------------------------------
#: The fast ring tries one.
SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))]


@pytest.mark.parametrize("seed", SEEDS)
def test_while_all_have_a_backlog_their_shares_differ_by_one_at_most(sql: Sql, seed: int) -> None:
    chance = random.Random(seed)
    fair(sql)
    tenants = {f"t{number}": chance.choice([60, 90, 300]) for number in range(chance.randint(2, 12))}
    fill(sql, tenants)
    served: Counter[str] = Counter(dict.fromkeys(tenants, 0))
    while max(served.values()) < 50:
        served.update(taken(sql, chance.choice([1, 2, 3, 7, 20])))
        assert max(served.values()) - min(served.values()) <= 1, served


@pytest.mark.parametrize("seed", SEEDS)
def test_a_tenant_with_something_due_is_served_within_a_round_of_the_others(sql: Sql, seed: int) -> None:
    chance = random.Random(seed)
    fair(sql)
    fill(sql, {f"big {number}": 200 for number in range(chance.randint(1, 15))})
    waits: dict[str, int] = {}  # what claims could take since it has waited
    most = 0
    for claim in range(60):
        if chance.random() < 0.4:
            name = f"small {claim}"
            fill(sql, {name: 1})
            waits[name] = 0
            most = max(most, len(waits))
        limit = chance.choice([1, 2, 5, 10])
        for key in taken(sql, limit):
            waits.pop(key, None)
        for key in waits:
            waits[key] += limit
        # one message of each other tenant comes before it, and the rest of the claim that it came behind
        assert all(taken_since < 15 + most + 10 for taken_since in waits.values()), waits
