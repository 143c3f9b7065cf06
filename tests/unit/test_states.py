"""The table of transitions itself: complete, closed, and every state can come to an end."""

from __future__ import annotations

from packhorse.worker.states import FINAL, LIVE, TRANSITIONS, State


def test_every_state_has_a_line_and_every_target_is_a_state() -> None:
    assert set(TRANSITIONS) == set(State)
    assert {target for edges in TRANSITIONS.values() for target in edges.values()} == set(State)


def test_final_states_have_no_way_out_and_live_ones_have() -> None:
    assert {state for state, edges in TRANSITIONS.items() if not edges} == FINAL
    assert all(TRANSITIONS[state] for state in LIVE)


def test_from_every_live_state_a_message_can_come_to_each_of_the_three_ends() -> None:
    for start in LIVE:
        reached, frontier = {start}, [start]
        while frontier:
            for target in TRANSITIONS[frontier.pop()].values():
                if target not in reached:
                    reached.add(target)
                    frontier.append(target)
        assert reached >= FINAL | {State.DEAD}


def test_only_a_claim_leads_to_running() -> None:
    assert [
        (state, verb)
        for state, edges in TRANSITIONS.items()
        for verb, target in edges.items()
        if target is State.RUNNING
    ] == [(State.PENDING, "claim")]
