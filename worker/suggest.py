"""The name that somebody meant: one wording of near misses, for errors and warnings."""

from __future__ import annotations

from collections.abc import Iterable


def near_miss(name: str, known: Iterable[str], likeness: float = 0.6) -> str | None:
    """The known name that is most like this one; None when none is. likeness: 0..1, how much it must be."""
    import difflib  # here: most commands and workers never need it

    return next(iter(difflib.get_close_matches(name, list(known), 1, likeness)), None)


def did_you_mean(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """A hint that asks for the known name which is most like this one; `otherwise` when none is."""
    near = near_miss(name, known)
    return otherwise if near is None else f"Did you mean {near!r}?"


def or_near(name: str, known: Iterable[str], otherwise: str = "") -> str:
    """The end of a problem that is one of several: `; did you mean 'name'?`, or `otherwise`."""
    near = near_miss(name, known)
    return otherwise if near is None else f"; did you mean {near!r}?"
