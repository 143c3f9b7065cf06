"""A claimed row as a dramatiq message, and a dramatiq message as a row.

`ClaimedMessage` is both dramatiq's proxy and our lease: middleware sees the message, the runtime sees
who owns it until when. The payload is decoded per message inside the guarded block, never at the fetch:
one undecodable row is one dead letter (SPEC P5).
"""

from __future__ import annotations

import json
import logging
import time
import traceback as traceback_module
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dramatiq
from dramatiq.broker import MessageProxy

from packhorse.worker.attempt.details import FailureDetails, Judgement, details_of, stored_text
from packhorse.worker.attempt.stages import NEXT, AttemptStage
from packhorse.worker.attempt.stored_steps import AttemptSteps, StepStore
from packhorse.worker.errors import InvalidArgument, UndecodableMessage
from packhorse.worker.observe import tracebacks
from packhorse.worker.states import Verb
from packhorse.worker.store.json_text import to_json

logger = logging.getLogger("packhorse.message")

MAX_TRACEBACK_FRAMES = 30
#: Where our own code stands, and dramatiq's beside it in an environment.
OURS = str(Path(__file__).parent.parent)

#: json.loads without its checks of type and white space: jsonb's own text needs neither.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]
#: Options that dramatiq's Retries writes into a message; here the attempt and its history say them
#: (retried_options in retry.sql).
_OF_THE_ATTEMPT = ("retries", "traceback", "requeue_timestamp")
#: What stands in the options of a row and is no option of the message.
_OF_THE_MESSAGE = ("args", "message_id", "message_timestamp")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What is to be written for an attempt that is not done: a verb and what goes with it. Decided once.

    bounded, of `uncommitted`: several in a row are a failed attempt. scope, of `park`: what rests; None: the
    only service of its actor.
    """

    verb: Verb
    reason: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    traceback: str | None = None
    frame: str | None = None
    delay_seconds: float | None = None
    max_attempts: int | None = None
    backoff_initial: float | None = None
    backoff_max: float | None = None
    on_exhausted: str | None = None
    bounded: bool = True
    scope: str | None = None
    details: FailureDetails | None = None
    #: Its traceback without texts, for a console.
    outline: str | None = None


class ClaimedMessage(MessageProxy):
    """A message that this process holds. Field by field what dramatiq.Message has, plus the lease.

    lease_until, claimed_at: monotonic seconds. due_seconds: how long it had been due when it was claimed.
    stored_steps: what earlier attempts have stored, as JSON text; None nearly always. `outcome` is None for
    done. stage: how far its attempt has come. lost: the heartbeat learnt that somebody else owns it. Written
    by the thread that runs the handler until it is handed back to the fetcher.
    """

    stage = AttemptStage.CLAIMED
    lost = False
    #: Has its handler, or something of middleware, given it up? dramatiq's name.
    failed = False
    outcome: Outcome | None = None
    #: When it is not worth doing any more: Unix seconds, by the clock of the database. Only a relay knows it.
    expires_at: float | None = None
    #: Set by the slot when the handler starts (monotonic; 0: it has not), and by the pool when it has ended.
    started_at = 0.0
    ran_seconds = 0.0
    #: Monotonic; set by the middleware for time limits.
    deadline: float | None = None
    hard_deadline: float | None = None
    #: Its wait is in the metrics; the meter's.
    wait_counted = False
    #: Its place among the messages that this process holds (RunningIds.ended); -1: none.
    place = -1
    #: What follows it was sent in its handler's transaction.
    followed = False
    #: How often each request was sent in this attempt, by its idempotency key; worker/calls/requests.py
    #: writes it.
    requests_sent: dict[str, int] | None = None
    #: Set when the attempt is traced.
    trace_id: str | None = None
    #: Where its steps are stored; set where it is run.
    step_store: StepStore | None = None
    #: False once the database has refused to write its outcome: it keeps the options that it has.
    keeps_options = True
    _attempt_steps: AttemptSteps | None = None
    _exception: BaseException | None = None
    _built: dramatiq.Message[Any] | None = None

    def __init__(self, row: tuple[Any, ...], lease_until: float, claimed_at: float) -> None:
        (
            _,
            self.id,
            self.lease_token,
            self.queue_name,
            self.actor_name,
            self._payload,
            self._options,
            self.priority,
            self.attempt,
            self.max_attempts,
            self.crashes,
            self.conversation_key,
            self.correlation_id,
            self.trace_context,
            self.run_at,
            self.age_seconds,
            self.due_seconds,
            self.stored_steps,
        ) = row
        #: Its type in the queue: that of its actor, unless a pattern stands for it.
        self.message_type = self.actor_name
        self.lease_until = lease_until
        self.claimed_at = claimed_at

    def move(self, stage: AttemptStage) -> None:
        """Its attempt has come to this stage. Raises ValueError for one that cannot come now."""
        if stage not in NEXT[self.stage]:
            raise ValueError(f"message {self.id}: {self.stage.name} cannot become {stage.name}")
        self.stage = stage

    def hand_back(self) -> None:
        """Handler and hooks are through: nothing changes its outcome any more."""
        if self.stage is AttemptStage.RUNNING:  # nearly always
            self.stage = AttemptStage.RETURNED
        else:
            self.move(AttemptStage.ENDED if self.stage is AttemptStage.COMMITTED else AttemptStage.RETURNED)

    def end(self) -> None:
        """Nothing is left to write, or it is for others to do; also when that is known already."""
        if self.stage is AttemptStage.RETURNED:  # nearly always
            self.stage = AttemptStage.ENDED
        elif self.stage is not AttemptStage.ENDED:
            self.move(AttemptStage.ENDED)

    @property
    def payload_text(self) -> str:
        """Its payload, as JSON text as the database has it."""
        return str(self._payload)

    @property
    def options_text(self) -> str:
        """Its options, as JSON text as the database has it."""
        return str(self._options)

    def superseded(self) -> bool:
        """Is there a later live message of its conversation or, without one, of its pending key? Raises
        StoreUnavailable.
        """
        return self.step_store is not None and self.step_store.is_superseded(self.id)

    def steps_of_attempt(self) -> AttemptSteps:
        """What this attempt knows of its steps; made at the first one. Raises StepError when what is stored
        cannot be read.
        """
        found = self._attempt_steps
        if found is None:  # threads of one handler may come at the same time
            found = self.__dict__.setdefault("_attempt_steps", AttemptSteps(self.id, self.stored_steps))
        return found

    def decode(self) -> None:
        """Parse payload and options; raises UndecodableMessage with the reason, never anything else."""
        try:
            self.kwargs = _scan(self._payload, 0)[0]
            options = _scan(self._options, 0)[0]
            self.args = tuple(options.pop("args", ()))
            self.message_id = options.pop("message_id", None) or str(self.id)
            sent = options.pop("message_timestamp", None)
        except (ValueError, RecursionError, TypeError, MemoryError, AttributeError, StopIteration) as error:
            raise UndecodableMessage(
                f"payload or options cannot be decoded: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        if type(self.kwargs) is not dict:
            raise UndecodableMessage("payload is not a JSON object")
        # the sender's, by its own clock; of a message that was sent in SQL, its age by the database's clock,
        # on this host's
        self.message_timestamp = sent if type(sent) is int else int((time.time() - self.age_seconds) * 1000)
        if self.attempt > 1:
            options.setdefault("retries", self.attempt - 1)
        self.options = options

    def options_to_keep(self) -> str | None:
        """Options for the next attempt, as JSON text, when middleware or the handler has changed them; None
        when not (SPEC W1).

        What cannot be stored is left out, with a warning.
        """
        now = vars(self).get("options")  # none of a row that could not be decoded
        if not self.keeps_options or type(now) is not dict:
            return None
        before = _scan(self.options_text, 0)[0]
        fixed = (*_OF_THE_MESSAGE, *_OF_THE_ATTEMPT)
        after = {name: value for name, value in now.items() if name not in fixed}
        if after == {name: value for name, value in before.items() if name not in fixed}:
            return None
        own = {name: before[name] for name in _OF_THE_MESSAGE if name in before}
        try:
            return to_json("options", {**after, **own})
        except InvalidArgument:
            kept = {name: value for name, value in after.items() if _can_be_stored(name, value)}
        left_out = ", ".join(sorted(str(name)[:50] for name in after.keys() - kept.keys()))
        logger.warning(
            "options_not_storable message_id=%s actor=%s names=%s: left out",
            self.id,
            self.actor_name,
            left_out,
        )
        try:
            return to_json("options", {**kept, **own})
        except InvalidArgument:  # together they are too large
            return None

    def again(self) -> dramatiq.Message[Any]:
        """The same as a message to be sent, with what stands in columns."""
        columns = {
            name: getattr(self, name)
            for name in ("priority", "conversation_key", "correlation_id", "max_attempts")
        }
        message: dramatiq.Message[Any] = self._message.copy(
            options={name: value for name, value in columns.items() if value is not None}
        )
        return message

    @property
    def _message(self) -> dramatiq.Message[Any]:  # type: ignore[override]
        """The dramatiq.Message, made when somebody asks for it."""
        if self._built is None:
            self._built = dramatiq.Message(
                self.queue_name,
                self.message_type,
                self.args,
                self.kwargs,
                self.options,
                self.message_id,
                self.message_timestamp,
            )
        return self._built


def _can_be_stored(name: Any, value: Any) -> bool:
    try:
        to_json("options", {name: value})
    except InvalidArgument:
        return False
    return isinstance(name, str)


def failure(exception: BaseException, judgement: Judgement | None = None, **policy: Any) -> Outcome:
    """The outcome for a failed attempt: class, message, bounded traceback, own top frame, details.

    judgement: that of the error boundary which it left.
    """
    return Outcome(
        Verb.FAIL,
        error_class=stored_text(type(exception).__name__, 200),
        error_message=stored_text(text_of(exception), 10_000),
        traceback=stored_text(format_traceback(exception), 50_000),
        frame=top_frame(exception),
        details=details_of(exception, judgement),
        outline=tracebacks.folded(exception) if tracebacks.on_console else None,
        **policy,
    )


def text_of(exception: BaseException) -> str:
    """What it says; a fixed text when that raises: a failure that cannot be printed is no success."""
    try:
        return str(exception) or repr(exception)
    except Exception:  # __str__ is the code of others
        return f"{type(exception).__name__} (its text could not be had)"


def format_traceback(exception: BaseException) -> str:
    """The traceback as text; a fixed text when even that fails."""
    try:
        return "".join(traceback_module.format_exception(exception, limit=-MAX_TRACEBACK_FRAMES))
    except Exception:  # an exception whose __str__ raises must not hide the failure itself
        return f"{type(exception).__name__} (its traceback could not be formatted)"


def top_frame(exception: BaseException) -> str | None:
    """file:function of the innermost frame that is not in an installed package; groups dead letters."""
    frame = None
    walk = exception.__traceback__
    while walk is not None:
        code = walk.tb_frame.f_code
        if "site-packages" not in code.co_filename and not code.co_filename.startswith(OURS):
            frame = f"{code.co_filename.rsplit('/', 1)[-1]}:{code.co_name}"
        walk = walk.tb_next
    return frame
