"""Alive, ready, started: answers from shared memory alone. An outage of the database cannot change "alive".

alive    every loop of every child, and the parent's, ticked within hang_seconds: work goes on, or would
ready    alive, not draining, not quiet, some child's last claim succeeded and the database answered it
         lately, and no child has a vital duty (claim, complete, beat, the timetable) that fails for longer
         than its budget: what it holds would start twice
started  some child has registered in the database once

Each function returns what is wrong, [] when nothing is. Times are CLOCK_MONOTONIC, one clock for the host.
"""

from __future__ import annotations

from packhorse.worker.observe.duties import Problem
from packhorse.worker.observe.fleet_stats import ALIVE, DRAINING, PARENT_TICK, STARTED, FleetStats
from packhorse.worker.observe.process_stats import CLAIM_FAILING, CONTACT_AT, QUIET, REGISTERED, ProcessStats
from packhorse.worker.observe.process_stats import DRAINING as CHILD_DRAINING


def late_loops(stats: ProcessStats, now: float, budget_seconds: float, since: float = 0.0) -> list[str]:
    """Loops of one child that have not ticked for budget_seconds, counted from `since` at the earliest."""
    return [loop for loop, at in stats.ticks().items() if now - max(at, since) > budget_seconds]


def alive(fleet_stats: FleetStats, now: float, budget_seconds: float) -> list[str]:
    """Is anything stuck?"""
    problems = [
        f"child {index}: {loop} has not ticked for {now - stats.ticks().get(loop, now):.0f} s"
        for index, stats in enumerate(fleet_stats.children)
        for loop in late_loops(stats, now, budget_seconds)
    ]
    parent = fleet_stats.cells[PARENT_TICK]
    if parent and now - parent > budget_seconds:
        problems.append(f"the parent has not ticked for {now - parent:.0f} s")
    return problems


def ready(fleet_stats: FleetStats, now: float, contact_seconds: float, budget_seconds: float) -> list[str]:
    """Would a message that arrives now be worked on? One child that would is enough."""
    if fleet_stats.cells[DRAINING]:
        return ["draining"]
    vital = [text for problem, text in _failing(fleet_stats, now) if problem.duty.vital]
    if vital:
        return vital
    problems = []
    for index, stats in enumerate(fleet_stats.workers):
        problem = _unready(stats, now, contact_seconds, budget_seconds)
        if problem is None:
            return []
        problems.append(f"child {index}: {problem}")
    return problems or ["no child"]


def warnings(fleet_stats: FleetStats, now: float) -> list[str]:
    """Duties that fail and that keep nobody from working on messages: rescue, upkeep, LISTEN and the like."""
    return [text for problem, text in _failing(fleet_stats, now) if not problem.duty.vital]


def _failing(fleet_stats: FleetStats, now: float) -> list[tuple[Problem, str]]:
    """Duties of every child and of the exporter that have failed for longer than their budget, with the words
    for them.
    """
    found = [
        (problem, f"child {index}: {problem.text}")
        for index, stats in enumerate(fleet_stats.children)
        for problem in stats.duties.own_problems(now)
    ]
    return found + [(problem, problem.text) for problem in fleet_stats.duties.own_problems(now)]


def _unready(stats: ProcessStats, now: float, contact_seconds: float, budget_seconds: float) -> str | None:
    states = stats.states
    if not states[REGISTERED]:
        return "not registered"
    if states[CHILD_DRAINING]:
        return "draining"
    if states[QUIET]:
        return "quiet: an operator asked it to claim nothing"
    if states[CLAIM_FAILING]:
        return "the last claim failed"
    if now - states[CONTACT_AT] > contact_seconds:
        return f"the database has not answered for {now - states[CONTACT_AT]:.0f} s"
    late = late_loops(stats, now, budget_seconds)
    return f"{', '.join(late)} does not tick" if late else None


def started(fleet_stats: FleetStats) -> list[str]:
    """Has a child registered since the parent began?"""
    if fleet_stats.cells[STARTED] or any(stats.states[REGISTERED] for stats in fleet_stats.workers):
        return []
    return [f"no child has registered yet; {fleet_stats.cells[ALIVE]:.0f} running"]
