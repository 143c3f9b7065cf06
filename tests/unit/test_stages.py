"""An attempt is in one stage, and comes from each only to those that may follow (stages.py)."""

from __future__ import annotations

import ast
from itertools import product
from pathlib import Path

import pytest

from packhorse.worker.attempt.stages import AT_WORK, NEXT, WRITTEN, AttemptStage
from tests.support.claimed import claimed

WORKER = Path(__file__).parent.parent.parent / "worker"


@pytest.mark.parametrize(("before", "after"), list(product(AttemptStage, AttemptStage)))
def test_an_attempt_comes_only_to_a_stage_that_may_follow(before: AttemptStage, after: AttemptStage) -> None:
    message = claimed(7)
    message.stage = before
    if after in NEXT[before]:
        message.move(after)
        assert message.stage is after
    else:
        with pytest.raises(ValueError, match=f"message 7: {before.name} cannot become {after.name}"):
            message.move(after)
        assert message.stage is before


def test_every_stage_is_reached_and_every_one_leads_to_the_end() -> None:
    reached = {AttemptStage.CLAIMED}
    while more := {after for before in reached for after in NEXT[before]} - reached:
        reached |= more
    assert reached == set(AttemptStage) == set(NEXT)
    assert [stage for stage in AttemptStage if not NEXT[stage]] == [AttemptStage.ENDED]
    assert all(after > before for before in AttemptStage for after in NEXT[before]), "none comes back"


def test_what_was_committed_is_over_when_it_is_handed_back_and_all_else_is_to_be_written() -> None:
    for before in (AttemptStage.CLAIMED, *AT_WORK):
        message = claimed()
        message.stage = before
        message.hand_back()
        assert message.stage is (AttemptStage.ENDED if before in WRITTEN else AttemptStage.RETURNED)


def test_the_end_is_told_as_often_as_one_likes_and_never_while_a_handler_runs() -> None:
    message = claimed()
    message.end()
    message.end()
    assert message.stage is AttemptStage.ENDED
    running = claimed()
    running.move(AttemptStage.RUNNING)
    with pytest.raises(ValueError, match="RUNNING cannot become ENDED"):
        running.end()


def test_the_stage_is_written_in_one_place() -> None:
    writers = {
        str(path.relative_to(WORKER))
        for path in WORKER.rglob("*.py")
        if ".stage" in (text := path.read_text())  # to read all as trees takes a second
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr == "stage" and isinstance(node.ctx, ast.Store)
    }
    assert writers == {"attempt/messages.py"}
