"""dramatiq messages -> arguments of enqueue_message.

The payload is the actor's keyword arguments: positional ones are bound to their names, so that a
message reads the same whoever enqueued it, in whatever language. Bad input is refused here, at the
door, with the name of the field.
"""

from __future__ import annotations

import inspect
import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import dramatiq
from dramatiq.common import q_name

from packhorse.worker.config import NAME_PATTERN
from packhorse.worker.errors import InvalidArgument
from packhorse.worker.patterns import STAR
from packhorse.worker.store.json_text import to_json
from packhorse.worker.store.options import (
    BY_NAME,
    COLUMN_OPTIONS,
    MAX_DELAY_SECONDS,
    WITHOUT_END,
    of_a_day,
    whole,
)
from packhorse.worker.suggest import did_you_mean, near_miss

_NAME = re.compile(NAME_PATTERN)


#: Options of other queues, or of nobody, and what they are called here.
_OF_OTHERS = {
    "queue_name": "packhorse.enqueue() calls it queue; a message of dramatiq has it by copy(queue_name=…).",
    "queue": "An actor has its queue; for one message: broker.enqueue(actor.message(…).copy(queue_name=…)).",
    "key": "Did you mean 'conversation_key'? (Or 'dedup_key', or 'concurrency_key'.)",
    "eta": "Did you mean 'run_at'? (A time with its zone; 'delay' is how long from now.)",
    "countdown": "Did you mean 'delay'?",
    "idempotency_key": "Did you mean 'dedup_key'?",
}


@lru_cache(1024)  # names stand in code: they are few
def _meant(name: str) -> str | None:
    """What to say instead of a name that is nearly an option of ours; None for a name of somebody else."""
    if name in _OF_OTHERS:
        return _OF_OTHERS[name]
    near = near_miss(name, COLUMN_OPTIONS | {"delay"}, 0.8)
    return f"Did you mean {near!r}?" if near and near != name else None


def refuse_misspelt(name: str) -> None:
    """Kept as an option of dramatiq's it would mean nothing, in silence. Raises InvalidArgument."""
    if hint := _meant(name):
        raise InvalidArgument(f"{name}: there is no such option", field=name, hint=hint)


@dataclass(slots=True)
class Encoded:
    """Arguments for enqueue_message: JSON texts, and `extra` for whatever is not the plain case."""

    queue: str
    message_type: str
    payload: str
    options: str
    priority: int = 5
    extra: dict[str, Any] = field(default_factory=dict)


def _called(function: Any) -> inspect.Signature:
    """What is really called: a decorator of the application may pass arguments of its own to what it wraps (a
    session, a tenant).
    """
    if getattr(function, "__globals__", {}).get("__name__") == "dramatiq.asyncio":
        function = function.__wrapped__  # dramatiq's own, around every coroutine function
    return inspect.signature(function, follow_wrapped=False)


class Signature:
    """Parameter names of one actor, for binding and for refusing wrong names."""

    def __init__(self, actor: dramatiq.Actor[Any, Any]) -> None:
        if not _NAME.fullmatch(actor.actor_name.removesuffix(STAR)):
            raise ValueError(
                f"actor_name: {actor.actor_name[:120]!r} is not a message type (letters, digits, dot, underscore, dash; 100 at most)"
            )
        self.names: list[str] = []
        self.required: set[str] | frozenset[str] = set()
        self.bindable = True
        self.open = False
        parameters = _called(actor.fn).parameters.values()
        for parameter in parameters:
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.VAR_POSITIONAL):
                self.bindable = False
            elif parameter.kind is parameter.VAR_KEYWORD:
                self.open = True
            else:
                if parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
                    self.names.append(parameter.name)
                if parameter.default is parameter.empty:
                    self.required |= {parameter.name}
        self.required = frozenset(self.required)
        self.known = (
            frozenset(self.names) | self.required | {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
        )

    def bind(self, actor_name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments; raises InvalidArgument that names the argument."""
        if len(args) > len(self.names):
            raise InvalidArgument(
                f"args: {actor_name} takes {len(self.names)} positional arguments, got {len(args)}",
                field="args",
            )
        bound = dict(zip(self.names, args, strict=False))
        for name in kwargs:
            if name in bound:
                raise InvalidArgument(f"{name}: given twice, by position and by name", field=name)
            if name not in self.known and not self.open:
                raise InvalidArgument(
                    f"{name}: {actor_name} has no argument of this name",
                    field=name,
                    hint=did_you_mean(
                        name, self.known, f"It takes: {', '.join(sorted(self.known)) or 'none'}"
                    ),
                )
        bound.update(kwargs)
        return bound


#: Durations of actors, in milliseconds, with the least that means something.
_ACTOR_DURATIONS = {"min_backoff": 0, "max_backoff": 0, "max_age": 0, "hard_time_limit": 0, "time_limit": 1}


def check_actor(actor: dramatiq.Actor[Any, Any]) -> None:
    """Refuse options that would be passed over, or fail in each attempt: dramatiq looks at their names only.
    Raises InvalidArgument.
    """
    options = {name: value for name, value in actor.options.items() if value is not None}
    if actor.priority != 0:  # dramatiq's default
        whole(1, 10, "priority", actor.priority)
    for name, low, high in (("max_attempts", 1, 1_000_000), ("max_retries", 0, 999_999)):
        if name in options:
            whole(low, high, name, options[name])
    for name, least in _ACTOR_DURATIONS.items():
        # dramatiq's word for none
        if name in options and not (name == "time_limit" and options[name] == math.inf):
            _number(name, options[name], least, MAX_DELAY_SECONDS * 1000)
    if not isinstance(options.get("transactional", False), bool):
        raise InvalidArgument("transactional: must be True or False", field="transactional")
    _check_debounce(actor, options)
    aliases = options.get("aliases", ())
    if not isinstance(aliases, (list, tuple, set, frozenset)) or not all(
        isinstance(alias, str) and _NAME.fullmatch(alias) for alias in aliases
    ):
        raise InvalidArgument("aliases: must be a list of former names of the actor", field="aliases")


def _check_debounce(actor: dramatiq.Actor[Any, Any], options: dict[str, Any]) -> None:
    if "debounce" not in options:
        if "max_wait" in options:
            raise InvalidArgument(
                "max_wait: without debounce it means nothing", field="max_wait", hint="Give debounce, too."
            )
        return
    window = of_a_day("debounce", options["debounce"])
    if "max_wait" in options and of_a_day("max_wait", options["max_wait"]) < window:
        raise InvalidArgument("max_wait: must be at least debounce", field="max_wait")
    signature = Signature(actor)
    if (
        not signature.required
        <= {"messages"}
        <= signature.known | ({"messages"} if signature.open else set())
    ):
        raise InvalidArgument(
            f"debounce: {actor.actor_name} gets all payloads as its argument messages",
            field="debounce",
            hint=f"def {actor.actor_name}(messages: list[dict[str, Any]])",
        )


def encode(
    message: dramatiq.Message[Any],
    delay_ms: int | float | None,
    signature: Signature | None,
    actor_options: dict[str, Any],
) -> Encoded:
    """Turn a dramatiq message into arguments of enqueue_message. Raises InvalidArgument."""
    name, payload = message.actor_name, message.kwargs
    loose_args: tuple[Any, ...] = ()
    if signature is not None and signature.bindable:
        if message.args or not signature.required <= payload.keys() <= signature.known:
            payload = signature.bind(name, message.args, payload)
            missing = signature.required - payload.keys()
            if missing:
                raise InvalidArgument(f"{min(missing)}: {name} needs this argument", field=min(missing))
    else:
        loose_args = message.args
    if signature is None and not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"message_type: {name[:120]!r} is not a message type",
            field="message_type",
            hint="A letter or underscore, then letters, digits, dot, underscore or dash; 100 at most.",
        )
    refuse_nul("queue", message.queue_name)
    encoded = Encoded(message.queue_name, name, to_json("payload", payload), "")
    debounced = actor_options.get("debounce") is not None
    if not (message.options or delay_ms or loose_args or debounced or actor_options.get("max_age")):
        encoded.options = plain_options(message.message_id, message.message_timestamp)
        return encoded
    for option in message.options.keys() - COLUMN_OPTIONS:
        refuse_misspelt(option)
    options = {
        **message.options,
        "message_id": message.message_id,
        "message_timestamp": message.message_timestamp,
    }
    if loose_args:
        options["args"] = list(loose_args)
    if not COLUMN_OPTIONS.isdisjoint(options):
        take_columns(encoded, options)
        refuse_window_without_key(encoded.extra)
    if "max_retries" in options:
        max_retries = options["max_retries"]
        max_attempts = (
            WITHOUT_END if max_retries is None else whole(0, 999_999, "max_retries", max_retries) + 1
        )
        if actor_options.get("retry_when") is None:  # which decides instead of it
            encoded.extra.setdefault("max_attempts", max_attempts)
    if options.get("time_limit") is not None:
        _number("time_limit", options["time_limit"], 1, MAX_DELAY_SECONDS * 1000)
    if debounced and "debounce_seconds" not in encoded.extra:
        for name in ("debounce", "max_wait"):
            if actor_options.get(name) is not None:
                encoded.extra[f"{name}_seconds"] = of_a_day(name, actor_options[name])
    max_age = options.get("max_age") or actor_options.get("max_age")
    if delay_ms:
        encoded.extra["delay_seconds"] = _number("delay", delay_ms, 0, MAX_DELAY_SECONDS * 1000) / 1000
        refuse_too_late(encoded.extra["delay_seconds"], encoded.extra)
    if max_age:
        expires = _number("max_age", max_age, 1, MAX_DELAY_SECONDS * 1000) / 1000
        # else AgeLimit skips it when it is due, as in dramatiq
        if encoded.extra.get("delay_seconds", 0.0) < expires:
            encoded.extra.setdefault("expires_seconds", expires)
    encoded.queue = q_name(message.queue_name)
    encoded.options = to_json("options", options)
    return encoded


def refuse_too_late(delay_seconds: float, extra: dict[str, Any]) -> None:
    """Refuse a message that is over before it may start. Raises InvalidArgument."""
    if 0 < delay_seconds >= extra.get("expires_seconds", math.inf):
        raise InvalidArgument(
            "expires_in: the message could never start",
            field="expires_in",
            hint="It must be longer than the delay.",
        )


def plain_options(message_id: str, message_timestamp: int) -> str:
    """The options of a message that has none: what dramatiq gives every message."""
    if (
        type(message_timestamp) is int
        and message_id.isascii()
        and message_id.isprintable()
        and '"' not in message_id
        and "\\" not in message_id
    ):
        return f'{{"message_id":"{message_id}","message_timestamp":{message_timestamp}}}'
    return to_json("message_id", {"message_id": message_id, "message_timestamp": message_timestamp})


def take_columns(encoded: Encoded, options: dict[str, Any]) -> None:
    """Move what are no options of dramatiq's from `options` to `encoded`. Raises InvalidArgument."""
    for name in COLUMN_OPTIONS & options.keys():
        value = options.pop(name)
        if value is None:
            continue
        option = BY_NAME[name]
        if name == "priority":
            encoded.priority = option.check(name, value)
        else:
            encoded.extra[option.key] = option.check(name, value)


def refuse_window_without_key(extra: dict[str, Any]) -> None:
    """Among checked options: a dedup window of no key would do nothing, in silence. Raises
    InvalidArgument.
    """
    if "dedup_window_seconds" in extra and "dedup_key" not in extra:
        raise InvalidArgument(
            "dedup_window: without dedup_key it means nothing",
            field="dedup_window",
            hint="Give the key, too.",
        )


def refuse_nul(name: str, value: Any) -> None:
    """In the name of a queue or a type; a driver would say it without the name of the field. Raises
    InvalidArgument.
    """
    if isinstance(value, str) and "\x00" in value:
        raise InvalidArgument(
            f"{name}: contains a NUL character, which PostgreSQL cannot store",
            field=name,
            hint="Remove it first.",
        )


def _number(name: str, value: Any, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InvalidArgument(
            f"{name}: must be a number from {low:g} to {high:.15g} (milliseconds), got {str(value)[:40]!r}",
            field=name,
        )
    return float(value)
