"""Which hooks are called around a handler: none that has nothing to do, and every one that may have
(SPEC W1).
"""

from __future__ import annotations

import time
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import Middleware, ShutdownNotifications

from packhorse.worker.attempt.middleware import AgeLimit, Callbacks, Pipelines, default_middleware
from packhorse.worker.runtime.executor import Executor
from packhorse.worker.runtime.hooks import _ONLY_WITH, Around, Hooks
from packhorse.worker.runtime.running_ids import RunningIds
from packhorse.worker.runtime.slots import ThreadSlot
from tests.support.claimed import claimed

Sent = list[tuple[Any, ...]]


def broker(middleware: list[Any], **options: Any) -> Any:
    """With the actor `effect`, which has these options, and `next`, whose messages are in `sent`."""
    actor = dramatiq.actor(broker=StubBroker(middleware=[]), actor_name="effect")(lambda: None)
    actor.options.update(options)
    sent: Sent = []
    actors = {"effect": actor, "next": SimpleNamespace(send=lambda *values: sent.append(values))}
    return SimpleNamespace(middleware=middleware, steps=None, get_actor=actors.__getitem__, sent=sent)


def of(around: Around) -> set[type]:
    """Whose hooks these are, for threads and for coroutines alike."""
    threads = {_owner(hook) for hook in around.before + around.after}
    assert threads == {_owner(each.call) for each in around.before_on_loop + around.after_on_loop}
    return threads


def _owner(hook: Any) -> type:
    return type(getattr(hook, "__wrapped__", hook).__self__)


def test_a_message_without_options_meets_only_those_that_do_something_for_each() -> None:
    hooks = Hooks(broker(default_middleware()))
    assert of(hooks.around) - of(hooks.around_plain("effect")) == set(_ONLY_WITH)


@pytest.mark.parametrize(
    ("kind", "option"), [(kind, option) for kind, options in _ONLY_WITH.items() for option in options]
)
def test_an_option_of_the_actor_brings_its_hooks_back(kind: type, option: str) -> None:
    hooks = Hooks(broker(default_middleware(), **{option: "next"}))
    assert kind in of(hooks.around_plain("effect"))


@pytest.mark.parametrize("one", [AgeLimit(max_age=1000), ShutdownNotifications(notify_shutdown=True)])
def test_so_does_what_a_middleware_says_for_all_actors(one: Middleware) -> None:
    assert type(one) in of(Hooks(broker([one])).around_plain("effect"))


@pytest.mark.parametrize("kind", _ONLY_WITH)
def test_what_is_derived_from_them_is_called_for_each(kind: type) -> None:
    derived = type("Derived", (kind,), {})
    assert derived in of(Hooks(broker([derived()])).around_plain("effect"))


def run(broker: Any, **columns: Any) -> None:
    message, slot = claimed(**columns), ThreadSlot(0, RunningIds(1))
    executor, now = Executor(broker), time.monotonic()
    assert executor.may_start(message, now)
    copy_context().run(executor.run, slot, message, now)


def test_an_option_of_the_message_is_heeded_beside_messages_without() -> None:
    with_callbacks = broker([Callbacks(), Pipelines()])
    run(with_callbacks)
    assert with_callbacks.sent == []
    run(with_callbacks, options='{"on_success": "next"}')
    assert len(with_callbacks.sent) == 1


def test_an_option_that_a_hook_writes_on_the_way_is_heeded() -> None:
    class Writes(Middleware):
        def before_process_message(self, broker: Any, message: Any) -> None:
            message.options["on_success"] = "next"

    with_writer = broker([Callbacks(), Writes()])
    run(with_writer)
    assert len(with_writer.sent) == 1
