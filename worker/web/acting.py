"""The routes of acts: a form, its preview, the act, and the progress of what takes long (SPEC O6).

GET shows a form; POST with `step` = load (show what is to be edited), preview, count (a preview that counts
all), or do. What an act refuses is said at its field, and what was written stays in the form. The door
(app.py) has checked role, origin and form token before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from packhorse.worker.errors import InvalidArgument, NotFound, StoreConflict, StoreRejected, StoreUnavailable
from packhorse.worker.web import reading
from packhorse.worker.web.access import Role
from packhorse.worker.web.acts import ACTS
from packhorse.worker.web.forms import ActForm, Preview, Submission, read_submission
from packhorse.worker.web.long_acts import LongAct, LongActs
from packhorse.worker.web.routes import Endpoint, Entry, Visit

STEPS = ("load", "preview", "count", "do")


@dataclass(frozen=True, slots=True)
class ActPage:
    """The form as it stands. texts: of its fields. problem: what was refused; problem_field: where, None for
    the whole form.

    step: which button comes next. preview: of what was written, when that was asked for.
    """

    act: ActForm
    texts: Mapping[str, str]
    command: str
    back: str
    step: str
    problem: str | None = None
    problem_field: str | None = None
    preview: Preview | None = None


def _form(act: ActForm) -> Endpoint:
    async def show(visit: Visit) -> Response:
        assert visit.site is not None
        texts = {
            name: value
            for name, value in visit.request.query_params.items()
            if name in {each.name for each in act.fields}
        }
        given = _lenient(act, texts, visit)
        for each in act.targets:
            each.read(texts.get(each.name, ""))  # an address without its target is a mistake, not a form
        if act.prefill is not None:
            texts = {**await visit.site.read(act.prefill, given), **texts}
        texts = {**{each.name: each.default for each in act.asked if each.default}, **texts}
        return _page(visit, act, texts, "load" if act.load else "preview" if act.preview else "do")

    return show


def _submit(act: ActForm) -> Endpoint:
    async def submit(visit: Visit) -> Response:
        texts = dict(visit.form)
        step = texts.get("step", "do")
        if step not in STEPS or (step == "load" and act.load is None):
            step = "preview" if act.preview else "do"
        try:
            return await _step(visit, act, texts, step)
        except InvalidArgument as error:
            problem, where = str(error), error.field
            names = {each.name for each in act.asked} | {"reason"}
            return _refused(
                visit,
                act,
                texts,
                step,
                problem,
                where if where in names else None,
                404 if isinstance(error, NotFound) else 400,
            )
        except StoreConflict as error:
            return _refused(
                visit,
                act,
                texts,
                step,
                f"Somebody else changes this at the moment: try again. {error}",
                None,
                409,
            )
        except StoreUnavailable as error:
            late = (
                "It took too long: narrow it, or use the command line, which has no limit"
                if error.late or error.sqlstate == reading.TOO_LONG
                else "The database does not answer"
            )
            return _refused(visit, act, texts, step, f"{late}. {error}", None, 503)
        except StoreRejected as error:
            return _refused(visit, act, texts, step, f"The database refuses this. {error}", None, 409)

    return submit


async def _step(visit: Visit, act: ActForm, texts: dict[str, str], step: str) -> Response:
    """Raises StoreError."""
    site, visitor = visit.site, visit.visitor
    assert site is not None and visitor is not None
    if step == "load" and act.load is not None:
        given = read_submission(act.targets, texts, visitor)
        return _page(visit, act, {**texts, **await site.act(act.load, given)}, "preview")
    given = read_submission(act.fields, texts, visitor)
    if step in ("preview", "count") and act.preview is not None:
        if act.as_owner:
            found = await site.act_as_owner(act.preview, given)
        elif act.records_preview(given):
            found = await site.act(act.preview, given)
        else:
            found = await site.read(act.preview, given)
        return _page(visit, act, {**texts, **found.kept}, "do", preview=found)
    if act.show is not None:
        return _shown(visit, act, given, await site.act(act.show, given))
    if act.long is not None:
        work = await site.read(act.long, given)
        begun = _long_acts(visit).begin(act.name, work, visitor.name, given.reason)
        return visit.see(f"/progress/{begun.id}")
    assert act.run is not None
    sentence = await site.act(act.run, given)
    site.forget()
    path, query = act.place(given)
    return visit.see(path, {**query, "said": visit.frame.notices.put(visitor, sentence)})


def _lenient(act: ActForm, texts: Mapping[str, str], visit: Visit) -> Submission:
    assert visit.visitor is not None
    return read_submission(act.fields, texts, visit.visitor, lenient=True)


def _refused(
    visit: Visit,
    act: ActForm,
    texts: Mapping[str, str],
    step: str,
    problem: str,
    field: str | None,
    status: int,
) -> Response:
    """The form again, as it was written."""
    again = "preview" if step in ("do", "count") and act.preview else step
    return _page(visit, act, texts, again, problem=problem, problem_field=field, status=status)


def _page(
    visit: Visit, act: ActForm, texts: Mapping[str, str], step: str, *, status: int = 200, **more: Any
) -> Response:
    given = _lenient(act, texts, visit)
    path, query = act.place(given)
    model = ActPage(act, texts, act.command_line(given), visit.link(path, query), step, **more)
    return visit.page("acts/form.html", act.label, model, status=status)


def _shown(visit: Visit, act: ActForm, given: Submission, found: Mapping[str, Any]) -> Response:
    path, query = act.place(given)
    model = {"act": act, "found": found, "number": given["id"], "back": visit.link(path, query)}
    return visit.page("acts/revealed.html", f"What message {given['id']} carries", model)


def _long_acts(visit: Visit) -> LongActs:
    assert visit.site is not None
    return visit.frame.long_acts[visit.site.name]


def _long_act(visit: Visit) -> LongAct:
    """Raises InvalidArgument for one that this process does not know."""
    found = _long_acts(visit).get(visit.request.path_params["id"])
    if found is None:
        raise InvalidArgument(
            "progress: this process of the page knows no such act",
            field="progress",
            hint="It ended with the process that did it; what it had done is done, and the audit has it",
        )
    return found


async def _progress(visit: Visit) -> Response:
    return visit.page("acts/progress_list.html", "Long acts", _long_acts(visit).all(), live=True)


async def _progress_of(visit: Visit) -> Response:
    act = _long_act(visit)
    path, query = act.work.place
    return visit.page(
        "acts/progress.html", act.work.title, act, live=not act.is_over, back=visit.link(path, query)
    )


async def _stop(visit: Visit) -> Response:
    act = _long_act(visit)
    await asyncio.to_thread(act.end)
    return visit.see(f"/progress/{act.id}")


#: Two routes for each act, and those of what takes long.
ENTRIES: tuple[Entry, ...] = (
    *(Entry("GET", act.path, act.role, _form(act)) for act in ACTS.values()),
    *(Entry("POST", act.path, act.role, _submit(act)) for act in ACTS.values()),
    Entry("GET", "/progress", Role.OPERATOR, _progress),
    Entry("GET", "/progress/{id}", Role.OPERATOR, _progress_of),
    Entry("POST", "/progress/{id}/stop", Role.OPERATOR, _stop),
)
