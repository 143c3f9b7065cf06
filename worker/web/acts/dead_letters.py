"""Acts on dead letters: one, those of a cause, those of a filter. What is many is counted first, and goes on
in the background (SPEC Q4).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from packhorse.worker.db.connection import DeadlineConnection
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.ops import where
from packhorse.worker.ops.amounts import Amount, confirmed
from packhorse.worker.ops.messages import with_settings
from packhorse.worker.ops.payloads import difference, read_object
from packhorse.worker.ops.redrive import redrive
from packhorse.worker.store import acts, dead_letters
from packhorse.worker.store.dead_letters import Selection
from packhorse.worker.store.filters import DEAD
from packhorse.worker.store.json_text import to_json
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts.counted import SHOWN, exact_seconds, kept_of, not_begun, shown_in
from packhorse.worker.web.acts.editing import BEFORE, FRESH, PAYLOAD, ChangedByNobodyElse, pretty_text
from packhorse.worker.web.acts.messages import ID
from packhorse.worker.web.forms import ActForm, FormField, LongWork, Place, Preview, Report, Submission

#: A purge works in batches of so many.
PAGE = 500
#: An act counts all before it begins, in the background, and has so long for it.
COUNT_SECONDS = 55.0
FINGERPRINT = FormField("fingerprint", "Cause", target=True)
WHERE = FormField(
    "where", "Filter", "filter", hint="Of dead letters: queue=mail error=Timeout* age<2h", target=True
)
DEAD_BY = (FormField("dead_by", "", "moment", target=True), *SHOWN)
SETTINGS = FormField(
    "settings",
    "First set in each payload",
    "settings",
    hint="Lines PATH=VALUE, such as customer.country=RW; a payload that it does not fit stays dead",
)
RATE = FormField(
    "rate", "Messages per second", "decimal", default="100", most=100_000, hint="0: as fast as it goes"
)
STOP_AFTER = FormField(
    "stop_after", "Stop when so many have died again", "integer", default="3", most=1_000_000, hint="0: never"
)
LIMIT = FormField(
    "limit",
    "At most so many",
    "integer",
    least=1,
    hint="Empty: all of them. Ten first show whether the cause is mended",
)


def at_letter(given: Submission) -> Place:
    return f"/dead-letters/{given['id']}", {}


def at_selection(given: Submission) -> Place:
    return (
        (f"/dead-letters/groups/{given['fingerprint']}", {})
        if given["fingerprint"]
        else ("/dead-letters", {"where": given.text("where")})
    )


def _selection(given: Submission) -> Selection:
    """Raises InvalidArgument; nothing named is an error, not everything."""
    terms = where.parse(given["where"] or "", DEAD, ()).terms
    if not given["fingerprint"] and not terms:
        raise InvalidArgument(
            "where: an empty filter would be every dead letter",
            field="where",
            hint="Say which: queue=mail, age>0s",
        )
    return Selection(fingerprint=given["fingerprint"], where=terms)


def _named(given: Submission) -> list[str]:
    return (
        ["--fingerprint", given["fingerprint"]]
        if given["fingerprint"]
        else ["--where", given.text("where") or "FILTER"]
    )


def _redrive_words(given: Submission) -> list[str]:
    rate, stop_after = given.text("rate"), given.text("stop_after")
    words = [
        "dead-letter",
        "redrive",
        *_named(given),
        "--rate",
        rate or "100",
        "--stop-after-failures",
        stop_after or "3",
    ]
    words += ["--limit", given.text("limit")] * bool(given.text("limit")) + ["--fresh"] * bool(given["fresh"])
    for line in given.text("settings").splitlines():
        words += ["--set", line.strip()] * bool(line.strip())
    return words


def _counted(connection: DeadlineConnection, given: Submission) -> tuple[Amount, datetime, Selection]:
    selection = _selection(given)
    found, dead_by = dead_letters.count(connection, selection, exact_seconds=exact_seconds(given))
    return Amount.of(found).up_to(given["limit"]), dead_by, selection


def _kept(amount: Amount, dead_by: datetime) -> dict[str, str]:
    return {"dead_by": dead_by.isoformat(), **kept_of(amount)}


def _redrive_preview(connection: DeadlineConnection, given: Submission) -> Preview:
    amount, dead_by, selection = _counted(connection, given)
    many = amount.number
    lines: list[str] = []
    warnings = ["Their steps are forgotten: what they have done is done again."] * bool(
        given["fresh"] and many
    )
    first = (
        next(dead_letters.pages(connection, selection, dead_by, 1), [])
        if given["settings"] and amount.counted
        else []
    )
    if first:  # the difference shows a part of its payload: a look, which is recorded
        acts.reveal(connection, first[0], given.operator, given.reason or "preview of a redrive")
        before = read_object("payload", dead_letters.payload(connection, first[0]))
        lines = difference(before, with_settings(before, given["settings"]), context=0)
        warnings += [f"The difference is that of dead letter {first[0]}, the first of them."]
        warnings += ["It has this value already."] * (not lines)
    said = _sentence(amount, "would be enqueued again, oldest first")
    if given["rate"] and many:
        said += f", in about {max(1, round(many / given['rate'])):,} s"
    return Preview(f"{said}.", tuple(lines), tuple(warnings), many, _kept(amount, dead_by), not amount.is_all)


def _sentence(amount: Amount, fate: str) -> str:
    """Without a full stop."""
    said = amount.said("dead letter")
    return f"{said} {fate}" if amount.is_all else f"These {fate}: {said}"


def _redrive(connection: DeadlineConnection, given: Submission) -> LongWork:
    selection, dead_by, shown = _confirmed(connection, given)

    def run(connection: DeadlineConnection, report: Report, stop: Any) -> tuple[str, bool]:
        total = _begun(connection, selection, dead_by, given["limit"], report)
        if total > shown.most:
            return not_begun(shown, shown.most), False
        found = redrive(
            connection,
            selection,
            dead_by,
            operator=given.operator,
            reason=given.reason,
            fresh=given["fresh"],
            settings=given["settings"],
            rate=given["rate"] or 0.0,
            limit=given["limit"],
            stop_after=given["stop_after"] or 0,
            report=report,
            stop=stop,
        )
        said = f"{found.redriven:,} of {total:,} are enqueued again"
        said += f"; {found.unfit:,} stayed dead: what was to be set does not fit them" if found.unfit else ""
        if found.ended == "failing":
            return (
                f"Stopped, for {found.died_again:,} of them died again: mend the cause first. {said}.",
                False,
            )
        return (
            f"{said}{', then it was stopped' if found.ended == 'interrupted' else ''}.",
            found.ended == "finished",
        )

    return LongWork(f"Redrive {' '.join(_named(given)[1:])}", max(1, shown.number), run, at_selection(given))


def _confirmed(connection: DeadlineConnection, given: Submission) -> tuple[Selection, datetime, Amount]:
    """What the act works on, those that are dead until then, and how many were shown. Raises
    InvalidArgument.
    """
    selection, dead_by, shown = _selection(given), _shown_until(given), shown_in(given)
    found, _ = dead_letters.count(connection, selection, dead_by)
    confirmed(shown, Amount.of(found).up_to(given["limit"]))
    return selection, dead_by, shown


def _begun(
    connection: DeadlineConnection, selection: Selection, dead_by: datetime, limit: int | None, report: Report
) -> int:
    """How many the act is about, all of them counted."""
    found, _ = dead_letters.count(connection, selection, dead_by, COUNT_SECONDS)
    total = Amount.of(found).up_to(limit).number
    report.begins(total)
    return total


def _shown_until(given: Submission) -> datetime:
    """Those that die after the preview are not part of it. Raises InvalidArgument."""
    if given["dead_by"] is None:
        raise InvalidArgument(
            "where: count them first", field="where", hint="The preview says how many there are"
        )
    found: datetime = given["dead_by"]
    return found


def _purge_preview(connection: DeadlineConnection, given: Submission) -> Preview:
    amount, dead_by, _ = _counted(connection, given)
    warnings = ("Nothing brings them back. `packhorse dead-letter export` keeps a copy.",) * bool(
        amount.number
    )
    said = _sentence(amount, "would be deleted for good") + "."
    return Preview(said, (), warnings, amount.number, _kept(amount, dead_by), not amount.is_all)


def _purge(connection: DeadlineConnection, given: Submission) -> LongWork:
    selection, dead_by, shown = _confirmed(connection, given)

    def run(connection: DeadlineConnection, report: Report, stop: Any) -> tuple[str, bool]:
        total = _begun(connection, selection, dead_by, None, report)
        if total > shown.most:
            return not_begun(shown, shown.most), False
        gone = 0
        for page in dead_letters.pages(connection, selection, dead_by, PAGE):
            if stop.is_set():
                return f"{gone:,} of {total:,} are deleted, then it was stopped.", False
            gone += len(dead_letters.purge(connection, page, given.operator, given.reason))
            report(len(page))
        return f"{gone:,} of {total:,} are deleted.", True

    return LongWork(f"Purge {' '.join(_named(given)[1:])}", max(1, shown.number), run, at_selection(given))


def _redrive_one(connection: DeadlineConnection, given: Submission) -> str:
    dead_letters.step_names(connection, given["id"])
    if not dead_letters.redrive(
        connection, [given["id"]], given.operator, given.reason, fresh=given["fresh"]
    ):
        dead_letters.show(connection, given["id"])  # says why: it is no dead letter
        raise InvalidArgument(
            f"dead letter {given['id']} stays one: a live message has its id", hint="See packhorse doctor"
        )
    return f"Message {given['id']} is enqueued again, with fresh attempts."


def _purge_one(connection: DeadlineConnection, given: Submission) -> str:
    if not dead_letters.purge(connection, [given["id"]], given.operator, given.reason):
        dead_letters.show(connection, given["id"])
    return f"Dead letter {given['id']} is deleted."


def _load(connection: DeadlineConnection, given: Submission) -> Mapping[str, str]:
    """The payload as a person edits it: a look, which is recorded."""
    before = dead_letters.payload(connection, given["id"])
    acts.reveal(connection, given["id"], given.operator, given.reason)
    return {"payload": pretty_text(before), "before": before}


def _edit_preview(connection: DeadlineConnection, given: Submission) -> Preview:
    lines = difference(read_object("before", given.text("before")), given["payload"])
    steps = dead_letters.step_names(connection, given["id"])
    warnings = [
        f"{len(steps)} step(s) have stored what they made of the old payload; a redrive with fresh steps forgets them."
    ] * bool(lines and steps)
    return Preview(
        "This is changed:" if lines else "Nothing is changed.", tuple(lines), tuple(warnings), len(lines)
    )


def _edit(connection: DeadlineConnection, given: Submission) -> str:
    with ChangedByNobodyElse():
        dead_letters.edit(
            connection,
            given["id"],
            to_json("payload", given["payload"]),
            given.text("before"),
            given.operator,
            given.reason,
        )
    return f"Dead letter {given['id']} is changed. Redrive it when its cause is mended."


DEAD_LETTER_ACTS = (
    ActForm(
        "dead-letter.redrive",
        Role.OPERATOR,
        "Redrive",
        "Enqueue it again with its own id and fresh attempts.",
        (ID, FRESH),
        lambda given: ["dead-letter", "redrive", str(given["id"]), *["--fresh"] * bool(given["fresh"])],
        lambda given: (f"/messages/{given['id']}", {}),
        run=_redrive_one,
    ),
    ActForm(
        "dead-letter.edit",
        Role.OPERATOR,
        "Edit",
        "Change its payload before it is redriven. Loading the payload is a look at it, which is recorded.",
        (ID, PAYLOAD, BEFORE),
        lambda given: ["dead-letter", "edit", str(given["id"]), "--payload", "FILE"],
        at_letter,
        run=_edit,
        load=_load,
        preview=_edit_preview,
    ),
    ActForm(
        "dead-letter.purge",
        Role.ADMIN,
        "Purge",
        "Delete it for good. If it blocks its conversation, that goes on.",
        (ID,),
        lambda given: ["dead-letter", "purge", str(given["id"])],
        lambda given: ("/dead-letters", {}),
        run=_purge_one,
        danger=True,
    ),
    ActForm(
        "dead-letters.redrive",
        Role.OPERATOR,
        "Redrive",
        "Enqueue them again with their own ids and fresh attempts, oldest first, at a pace; it stops when they fail again.",
        (FINGERPRINT, WHERE, RATE, STOP_AFTER, LIMIT, SETTINGS, FRESH, *DEAD_BY),
        _redrive_words,
        at_selection,
        long=_redrive,
        preview=_redrive_preview,
        records_preview=lambda given: bool(given["settings"]),
    ),
    ActForm(
        "dead-letters.purge",
        Role.ADMIN,
        "Purge",
        "Delete them for good. Conversations that they block go on.",
        (FINGERPRINT, WHERE, *DEAD_BY),
        lambda given: ["dead-letter", "purge", *_named(given)],
        at_selection,
        long=_purge,
        preview=_purge_preview,
        danger=True,
    ),
)
