"""Of many that hear of one message one looks, and every number is somebody's (SPEC Q10)."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from packhorse.worker.runtime.ring import FEW, POINTS, Word, ours, some_number


def fleet(count: int) -> list[tuple[UUID, UUID]]:
    """So many ids, each with the one before it."""
    ids = sorted(uuid4() for _ in range(count))
    return [(own, ids[place - 1]) for place, own in enumerate(ids)]


@pytest.mark.parametrize("count", [FEW + 1, 10, 100])
def test_every_number_is_the_turn_of_one_and_over_time_of_all(count: int) -> None:
    everybody = fleet(count)
    words = [Word("q", number=number) for number in [0, POINTS - 1, *range(20_000)]]
    for word in words[:1000]:  # numbers of transactions come one after the other
        assert len([own for own, before in everybody if ours(word, own, before, count)]) == 1
    had = [own for own, before in everybody if any(ours(word, own, before, count) for word in words)]
    assert len(had) >= 0.98 * count, "one whose part of the ring is tiny may have had no turn"


def test_numbers_that_follow_each_other_are_the_turns_of_different_processes() -> None:
    own = UUID(int=(POINTS // 2) << 96)
    half = [ours(Word("q", number=number), own, UUID(int=0), 10) for number in range(1000)]
    assert 490 <= sum(half) <= 510, "half of the ring, half of the turns"
    assert sum(one != next_one for one, next_one in zip(half, half[1:], strict=False)) >= 400


@pytest.mark.parametrize("peers", [0, 1, FEW])
def test_of_few_all_look(peers: int) -> None:
    own, before = fleet(2)[0]
    assert all(ours(Word("q", number=some_number()), own, before, peers) for _ in range(100))


def test_who_has_not_heard_of_another_looks() -> None:
    assert all(ours(Word("q", number=some_number()), uuid4(), None, 100) for _ in range(100))


def test_a_word_without_a_number_is_for_some_and_one_for_all_is_for_all() -> None:
    own, before = fleet(2)[0]
    some = sum(ours(Word("q"), own, before, 100) for _ in range(10_000))
    assert some == pytest.approx(10_000 * FEW / 100, rel=0.3)
    assert all(ours(Word("q", all=True), own, before, 100) for _ in range(100))


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a.b-c", Word("a.b-c")),
        ("q!", Word("q", all=True)),
        ("q@17", Word("q", number=17)),
        ("q@17+2", Word("q", number=17, passed=2)),
        ("q@", Word("q")),
        ("q@x+1", Word("q")),
        ("q@²", Word("q")),
        ("q@17+²", Word("q", number=17)),
        ("q@17+x", Word("q", number=17)),
    ],
)
def test_what_is_heard_is_read_or_for_nobody_in_particular(text: str, word: Word) -> None:
    assert Word.read(text) == word
