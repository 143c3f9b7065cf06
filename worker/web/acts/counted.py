"""How many a preview has shown, and what a person agrees to by that (worker/ops/amounts.py)."""

from __future__ import annotations

from packhorse.worker.ops.amounts import Amount
from packhorse.worker.web.forms import FormField, Submission

#: Who asks for a whole count waits so long, as for every question of the page.
WHOLE_COUNT_SECONDS = 1.0
#: How many a preview has shown.
SHOWN = (FormField("total", "", "integer", target=True), FormField("estimate", "", "integer", target=True))


def exact_seconds(given: Submission) -> float | None:
    """Has the visitor asked for a whole count?"""
    return WHOLE_COUNT_SECONDS if given.text("step") == "count" else None


def kept_of(amount: Amount) -> dict[str, str]:
    """SHOWN, as the form brings it back."""
    return {"total": str(amount.counted), "estimate": "" if amount.estimate is None else str(amount.estimate)}


def shown_in(given: Submission) -> Amount:
    """What the preview has shown. The form brings it, and could bring any."""
    return Amount(given["total"] or 0, given["estimate"])


def not_begun(amount: Amount, most: int) -> str:
    """How an act ends that found more than was agreed to."""
    return f"Nothing is done: more than {most:,} match, and {amount.number:,} were shown. Count all, and look again."
