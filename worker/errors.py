"""Every error that Packhorse raises, as one tree; imports nothing.

`StoreError` and below are what a database call can end in; `db/errors.py` maps SQLSTATEs to them and
nothing else decides by SQLSTATE or by message text. `AskedOutcome` and below are not failures: a handler
raises one to say how its message ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf
from types import MappingProxyType


class WorkerError(Exception):
    """Base of everything that Packhorse raises on purpose."""


class ConfigError(WorkerError):
    """The configuration is unusable. `problems` holds every problem found, one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


class SchemaMismatch(WorkerError):
    """Code and database disagree about the schema; the text says which side is older."""


class MigrationError(WorkerError):
    """A migration could not be applied, or an applied one was changed afterwards."""


class AdoptionRefused(MigrationError):
    """What exists cannot be adopted as it is. `problems` holds every reason, one sentence each."""

    def __init__(self, message: str, problems: list[str]) -> None:
        self.problems = problems
        super().__init__(message)


class StoreError(WorkerError):
    """A database call failed."""

    sqlstate: str | None = None


class StoreUnavailable(StoreError):
    """No usable connection: refused, lost, read-only, shutting down, out of disk, deadline passed.

    Retry with backoff; nothing about the message is at fault. late: the deadline passed; the call may still
    be running there. blocked: seconds until the next attempt to connect, asked anew each time; None: nothing
    is known. tried: False when none was made, for one of the same process had just failed.
    """

    late: bool = False
    blocked: Callable[[], float] | None = None
    tried: bool = True


class StoreConflict(StoreError):
    """Deadlock, serialisation failure or lock timeout: the same call may work in a few milliseconds."""


class StoreRejected(StoreError):
    """The database refuses the statement itself (privilege, missing object, constraint): never retried."""


class InvalidArgument(StoreError):
    """A value was refused at the door; `field` names it, `hint` says what to do."""

    def __init__(self, message: str, *, field: str | None = None, hint: str | None = None) -> None:
        self.field = field
        self.hint = hint
        super().__init__(f"{message}. {hint}" if hint else message)


class NotFound(InvalidArgument):
    """Nothing has this id: it never existed, or its retention is over."""

    def __init__(self, what: str, message_id: int) -> None:
        super().__init__(
            f"no {what} has the id {message_id}",
            field="id",
            hint="It never existed, or it was purged or its retention is over",
        )


class NotDead(NotFound):
    """A message that is no dead letter. state: of the message."""

    _FITS = {
        "running": "`packhorse message show {0}` has it, `packhorse message cancel {0}` ends it",
        "pending": "`packhorse message edit {0}` edits it, `packhorse message cancel {0}` ends it",
        "blocked": "`packhorse message edit {0}` edits it, `packhorse message cancel {0}` ends it",
    }

    def __init__(self, message_id: int, state: str) -> None:
        text = f"message {message_id} is {state}, not dead"
        super(NotFound, self).__init__(
            text,
            field="id",
            hint=self._FITS.get(state, "`packhorse message show {0}` has it").format(message_id),
        )


class UnknownQueue(InvalidArgument):
    """The queue does not exist; the hint names a near miss."""


class LeaseLost(WorkerError):
    """Somebody else owns the message now: stop, write nothing."""


class NotCompleted(WorkerError):
    """The transaction of a handler was not committed, and that may be no fault of its own: it runs again.

    refused: the database refused the completion itself, which is never the handler's fault.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        self.refused = refused
        super().__init__(message)


class LeaseInterrupt(BaseException):
    """Raised inside a handler whose lease is about to end unrenewed (self-fencing)."""


class CancelInterrupt(BaseException):
    """Raised inside a handler whose message an operator cancelled."""


class DrainInterrupt(BaseException):
    """Raised inside a handler that still runs at the grace limit of a shutdown."""


class HardTimeLimitExceeded(WorkerError):
    """A coroutine went on after its time limit until its hard one; it is not resumed any more, and its
    attempt has failed.
    """


class UndecodableMessage(WorkerError):
    """A claimed row cannot be turned into a call: it becomes one dead letter."""


class ServiceFailed(WorkerError):
    """A service did not answer as it should: no connection, no answer in time, too long an answer, a status
    of 400 and more.

    status_code: of the answer; None when there was none. retry_after: seconds that it asked to wait, or None.
    """

    def __init__(
        self,
        message: str,
        *,
        service: str,
        endpoint: str | None = None,
        status_code: int | None = None,
        retry_after: float | None = None,
    ) -> None:
        self.service = service
        self.endpoint = endpoint
        self.status_code = status_code
        self.retry_after = retry_after
        super().__init__(message)


class WorkflowError(WorkerError):
    """An error of a handler, with a stable `code`, context for people, and whether another attempt can help.

    One that is not `retryable`, or not `recoverable`, is a dead letter at once; else the usual policy
    decides. code: at most 100 characters are kept. context: a mapping of anything; what is kept with the
    message of it is masked and has a bound of some KiB.
    """

    code = "WORKFLOW_ERROR"
    #: A subclass may say no for all of its errors.
    recoverable: bool = True
    retryable: bool = True
    context: Mapping[str, object] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        code: str | None = None,
        context: Mapping[str, object] | None = None,
        recoverable: bool = True,
        retryable: bool = True,
    ) -> None:
        self.code = code or self.code
        self.context = {} if context is None else context
        self.recoverable = recoverable and type(self).recoverable
        self.retryable = retryable and type(self).retryable
        super().__init__(message)


class AgentError(WorkflowError):
    """An AI agent or its API failed. agent_type: which one."""

    code = "AGENT_ERROR"

    def __init__(
        self,
        message: str,
        code: str | None = None,
        context: Mapping[str, object] | None = None,
        recoverable: bool = True,
        retryable: bool = True,
        *,
        agent_type: str | None = None,
    ) -> None:
        self.agent_type = agent_type
        super().__init__(message, code, context, recoverable, retryable)


class MessageProcessingError(WorkflowError):
    """A message could not be processed. message_id: which one, by the name that its sender has for it.

    should_retry is another name of retryable; when both are given, either of them says no.
    """

    code = "MESSAGE_PROCESSING_ERROR"

    def __init__(
        self,
        message: str,
        code: str | None = None,
        context: Mapping[str, object] | None = None,
        recoverable: bool = True,
        retryable: bool = True,
        *,
        message_id: object = None,
        should_retry: bool = True,
    ) -> None:
        self.message_id = message_id
        super().__init__(message, code, context, recoverable, retryable and should_retry)

    @property
    def should_retry(self) -> bool:
        return self.retryable

    @should_retry.setter
    def should_retry(self, value: bool) -> None:
        self.retryable = value


class StepError(WorkerError):
    """A step cannot be stored (worker/attempt/steps.py). The message becomes a dead letter: another attempt
    would pay for the same again.
    """

    retryable = False


class AskedOutcome(Exception):
    """How a message ends when it is neither done nor failed; raised by handlers."""


class Snooze(AskedOutcome):
    """Run the message again after `seconds` (>= 0); not a failure, the attempt is given back."""

    def __init__(self, seconds: float, reason: str | None = None) -> None:
        self.seconds = seconds
        self.reason = reason
        super().__init__(reason or f"snoozed for {seconds} s")


class CircuitOpen(Snooze):
    """A service is not called, for the circuit breaker of every endpoint that it has is open. Leaving a
    handler, the message is snoozed.

    seconds: until it may be tried again. The cause, when there is one, is the call that failed while the
    breaker opened, or as its probe.
    """

    def __init__(self, service: str, seconds: float) -> None:
        self.service = service
        super().__init__(seconds, f"the circuit of the service {service} is open")


class RetryAfter(Snooze):
    """What the handler calls asked for a pause of `seconds` (a 429): run again after it, no attempt spent,
    and let its scope rest so long.

    scope: a name for what shares the pause, 1 to 200 characters: a service that actors name, `actor:<name>`,
    `queue:<name>`, or any other, to which this type then belongs. None: the only service that the actor
    names; it names none or several: this message alone. A pause is at most a day; a longer one counts as
    that. Raises ValueError for seconds that are negative or no number, and for a bad scope, TypeError for
    what is none of these.
    """

    def __init__(self, seconds: float, scope: str | None = None, reason: str | None = None) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float):
            raise TypeError(f"RetryAfter: seconds must be a number, not {type(seconds).__name__}")
        if not 0 <= seconds < inf:  # False of what is not a number, too
            raise ValueError(f"RetryAfter: seconds must be a finite number, 0 or more, not {seconds}")
        if scope is not None and not isinstance(scope, str):
            raise TypeError(f"RetryAfter: scope must be a text, not {type(scope).__name__}")
        if scope is not None and not 1 <= len(scope) <= 200:
            raise ValueError(f"RetryAfter: scope must have 1 to 200 characters, not {len(scope)}")
        self.scope = scope
        super().__init__(min(seconds, 86_400.0), reason or f"told to wait for {seconds:.15g} s")


class Cancel(AskedOutcome):
    """Stop: the message ends as `cancelled` and is not retried."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason or "cancelled by its handler")


class Bury(AskedOutcome):
    """Give up at once: the message becomes a dead letter whatever attempts are left."""

    def __init__(self, reason: str | None = None) -> None:
        self.reason = reason
        super().__init__(reason or "buried by its handler")


class Retry(AskedOutcome):
    """The attempt failed; run again after `seconds`, or after the usual backoff when None."""

    def __init__(self, seconds: float | None = None, reason: str | None = None) -> None:
        self.seconds = seconds
        self.reason = reason
        super().__init__(reason or "retry asked by its handler")
