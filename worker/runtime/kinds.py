"""Which pool runs which message type, and how many of it at once (SPEC W3)."""

from __future__ import annotations

from packhorse.worker.broker.postgres import PostgresBroker
from packhorse.worker.runtime.claims import Kind
from packhorse.worker.runtime.coroutines import CoroutinePool
from packhorse.worker.runtime.threads import ThreadPool


def kinds_of(
    broker: PostgresBroker, types: list[str], threads: ThreadPool, coroutines: CoroutinePool, connections: int
) -> list[Kind]:
    """The kinds of a process that runs `types` (actors and aliases).

    An actor with `max_in_flight` is a kind of its own, with its aliases. Transactional coroutines without one
    share the connections.
    """
    common: dict[str, list[str]] = {"threads": [], "coroutines": [], "transactional": []}
    limited: dict[str, list[str]] = {}
    for name in types:
        actor = broker.get_actor(name)
        if actor.options.get("max_in_flight") is not None:
            limited.setdefault(actor.actor_name, []).append(name)
        elif name not in coroutines.handlers:
            common["threads"].append(name)
        else:
            common["transactional" if actor.options.get("transactional") else "coroutines"].append(name)
    kinds = [
        Kind(threads, common["threads"]),
        Kind(coroutines, common["coroutines"]),
        Kind(coroutines, common["transactional"], connections),
    ]
    for name, names in limited.items():
        actor = broker.get_actor(name)
        kinds.append(
            Kind(
                coroutines if name in coroutines.handlers else threads, names, actor.options["max_in_flight"]
            )
        )
    return [kind for kind in kinds if kind.types] or [Kind(threads, [])]
