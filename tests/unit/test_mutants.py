"""tests/mutants.toml: what the tool leaves out stands where it says, and says why."""

from __future__ import annotations

import pytest

from packhorse.worker.db.migration_files import directory
from tests import mutants


@pytest.mark.slow
def test_each_known_equivalent_stands_in_its_function() -> None:
    texts = [path.read_text() for path in (directory() / "functions").glob("*.sql")]
    for known in mutants.known_equivalents():
        home = [text for text in texts if f"create or replace function packhorse.{known.function}(" in text]
        assert any(known.is_at(text, mutant) for text in home for mutant in mutants.mutants(text)), (
            f"not there any more, remove it from tests/mutants.toml: {known}"
        )
        assert known.why


def test_operands_and_skip_locked_are_found() -> None:
    text = """create or replace function packhorse.f() returns void
    select case when a then 1 end where b = 1 and (c or d) and e between 1 and 2 for update skip locked"""
    assert [(mutant.what, mutant.instead) for mutant in mutants.mutants(text)] == [
        ("b = 1", " true "),
        ("(c or d)", ""),
        ("e between 1 and 2", ""),
        ("skip locked", ""),
    ]
    assert {mutants.function_at(text, mutant.start) for mutant in mutants.mutants(text)} == {"f"}
