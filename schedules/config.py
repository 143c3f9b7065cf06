"""The sections of packhorse.toml that belong here: [schedules.NAME], [retention.NAME], [partitions.NAME],
[gates].

Every problem is found at once and names section, field and a near miss; a policy of the user with the name of
a shipped one takes its place, `enabled = false` switches it off.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from packhorse.schedules.maintenance.policies import Gates, Partitions, Retention
from packhorse.schedules.registry import (
    FOLLOWED,
    JOBS,
    PARTITIONS,
    QUEUE,
    RETENTION,
    Job,
    declared,
    maintenance_schedules,
)
from packhorse.schedules.timetable.schedule import Schedule
from packhorse.worker.config import read_document
from packhorse.worker.errors import ConfigError, InvalidArgument
from packhorse.worker.suggest import or_near

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
#: Fields whose value is a duration: seconds, or text like "90d".
_DURATIONS = {
    "keep": "keep_seconds",
    "every": "every_seconds",
    "jitter": "jitter_seconds",
    "grace": "grace_seconds",
    "budget": "budget_seconds",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """All that runs by itself: policies, jobs, gates, and the schedules of users."""

    retention: tuple[Retention, ...]
    partitions: tuple[Partitions, ...]
    jobs: tuple[Job, ...]
    gates: Gates
    schedules: tuple[Schedule, ...]

    def tasks(self) -> dict[str, Retention | Partitions | Job]:
        """Maintenance tasks by name: retention.*, partitions.*.make, partitions.*.drop, job.*."""
        found: dict[str, Retention | Partitions | Job] = {policy.task: policy for policy in self.retention}
        for policy in self.partitions:
            found[policy.make_task] = found[policy.drop_task] = policy
        return found | {job.task: job for job in self.jobs}

    def policies(self) -> dict[str, dict[str, Any]]:
        """What works without this configuration has to know of it (declare_policies): of each such task its
        numbers, {} when it is switched off, or is about other rows than the shipped one."""

        found: dict[str, dict[str, Any]] = nothing_to_delete()
        shipped: dict[str, Retention] = {policy.name: policy for policy in RETENTION if policy.task in found}
        for policy in self.retention:
            was = shipped.get(policy.name)
            if was and (policy.table, policy.column, policy.where, policy.assign) == (
                was.table,
                was.column,
                was.where,
                was.assign,
            ):
                found[policy.task] = {"keep_seconds": policy.keep_seconds}
        ours: dict[str, Partitions] = {policy.name: policy for policy in PARTITIONS}
        for now in self.partitions:
            then = ours.get(now.name)
            if then is None or (now.table, now.column, now.every) != (then.table, then.column, then.every):
                continue
            if now.make_task in found:
                found[now.make_task] = {"ahead": now.ahead}
            if now.drop_task in found and now.export_dir is None and now.grace_seconds <= then.grace_seconds:
                # beside keep_done of the queues
                found[now.drop_task] = {"keep_days": now.keep if now.keep != then.keep else 0}
        return found

    def timetable(self, leave_out: set[str] | frozenset[str] = frozenset()) -> list[Schedule]:
        """Every schedule: those of users and one per maintenance task, without the tasks to leave out."""
        crons: dict[str, tuple[str, str]] = {
            policy.task: (policy.cron, policy.time_zone) for policy in self.retention
        }
        for policy in self.partitions:
            crons[policy.make_task] = (policy.make_cron, policy.time_zone)
            crons[policy.drop_task] = (policy.drop_cron, policy.time_zone)
        crons |= {job.task: (job.cron, "UTC") for job in self.jobs}
        return [
            *self.schedules,
            *maintenance_schedules({task: cron for task, cron in crons.items() if task not in leave_out}),
        ]


def nothing_to_delete() -> dict[str, dict[str, Any]]:
    """Every policy that holds outside the scheduler, switched off."""
    return {task: {} for task in FOLLOWED}


def load_plan(environ: Mapping[str, str] | None = None, toml_path: Path | None = None) -> Plan:
    """Shipped policies, those of packhorse.toml, and schedules declared in code. Raises ConfigError with
    every problem.
    """
    plan, problems = read_plan(environ, toml_path)
    if problems:
        raise ConfigError(problems)
    return plan


def read_plan(
    environ: Mapping[str, str] | None = None, toml_path: Path | None = None
) -> tuple[Plan, list[str]]:
    """The same without the entries that are wrong, and every problem. Raises ConfigError when the file is no
    TOML.
    """
    document, path = read_document(toml_path, environ)
    problems: list[str] = []

    def section(
        name: str, build: Callable[[str, dict[str, Any]], Any], shipped: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        found = {item.name: item for item in shipped}
        entries = document.get(name, {})
        if not isinstance(entries, dict):
            problems.append(f"{path}: [{name}]: must be tables, [{name}.NAME]")
            return shipped
        for entry, values in entries.items():
            where = f"{path}: [{name}.{entry}]"
            if not isinstance(values, dict):
                problems.append(f"{where}: must be a table")
            elif not isinstance(values.get("enabled", True), bool):
                problems.append(
                    f"{where}: enabled: must be true or false, not {type(values['enabled']).__name__}"
                )
            elif "name" in values:
                problems.append(f"{where}: name: there is no such field; the name is that of the table")
            elif values.get("enabled") is False:
                # a schedule may be one of code that this process has not imported
                if found.pop(entry, None) is None and len(values) == 1 and name != "schedules":
                    problems.append(
                        f"{where}: there is no {entry!r} to switch off{or_near(entry, [item.name for item in shipped])}"
                    )
            else:
                values = {key: value for key, value in values.items() if key != "enabled"}
                item, wrong = _built(
                    name,
                    partial(build, entry) if entry not in found else partial(_changed, found[entry]),
                    values,
                )
                if not wrong:
                    found[entry] = item
                problems.extend(f"{where}: {problem}" for problem in wrong)
        return tuple(found.values())

    retention = section(
        "retention", lambda name, values: _build(Retention, {"name": name, **values}), RETENTION
    )
    partitions = section(
        "partitions", lambda name, values: _build(Partitions, {"name": name, **values}), PARTITIONS
    )
    schedules = section("schedules", lambda name, values: _build(Schedule, {"name": name, **values}), ())
    limits = document.get("gates", {})
    gates, wrong = (
        _built("gates", partial(_build, Gates), limits)
        if isinstance(limits, dict)
        else (None, ["must be a table"])
    )
    problems += [f"{path}: [gates]: {problem}" for problem in wrong]
    schedules = (
        *(entry for name, entry in declared.items() if name not in document.get("schedules", {})),
        *schedules,
    )
    plan = Plan(retention, partitions, JOBS, Gates() if wrong or gates is None else gates, schedules)
    return plan, problems + [f"{path}: {problem}" for problem in conflicts(plan)]


def _bare(table: str) -> str:
    """One spelling per table, where two are usual."""
    return table.removeprefix("packhorse.").removeprefix("public.")


def conflicts(plan: Plan) -> list[str]:
    """Policies that fight each other, or schedules that take a task's name."""
    found = []
    by_rows: dict[tuple[str, str], Retention] = {}
    for policy in plan.retention:
        other = by_rows.setdefault((_bare(policy.table), policy.where or ""), policy)
        if other is not policy and (other.assign is None) == (policy.assign is None):
            found.append(
                f"[retention.{policy.name}] and [retention.{other.name}]: both remove from {policy.table} under the same condition"
            )
    partitioned = {_bare(policy.table): policy for policy in plan.partitions}
    for policy in plan.retention:
        rival = partitioned.get(_bare(policy.table))
        if rival is not None and policy.assign is None and policy.where is None:
            found.append(
                f"[retention.{policy.name}] and [partitions.{rival.name}]: both end the rows of {policy.table}; keep one of them"
            )
    tasks = plan.tasks()
    found += [
        f"[schedules.{entry.name}]: this name belongs to a maintenance task"
        for entry in plan.schedules
        if entry.name in tasks
    ]
    found += [
        f"[schedules.{entry.name}]: the queue {QUEUE!r} is for maintenance"
        for entry in plan.schedules
        if entry.queue == QUEUE
    ]
    return found


class _Missing(InvalidArgument):
    """Fields without which there is no policy; `names` as TOML has them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(f"{', '.join(names)}: missing")
        self.names = names


#: Per section, values that nobody refuses, for fields that it cannot be without.
_STAND_INS: dict[str, dict[str, Any]] = {
    "retention": {"column": "x", "keep": 1},
    "partitions": {"column": "x", "keep": 1, "ahead": 1, "every": "day"},
    "schedules": {"message_type": "x", "cron": "* * * * *", "every": 60},
    "gates": {},
}


def _built(
    section: str, build: Callable[[dict[str, Any]], Any], values: Mapping[str, Any]
) -> tuple[Any, list[str]]:
    """A policy of these values, and what is wrong with them: what is refused is left out or replaced, so that
    it hides nothing else.
    """
    stand_ins = _STAND_INS[section]
    values, problems, replaced = dict(values), list[str](), set[str]()
    while True:
        try:
            return build(values), problems
        except InvalidArgument as error:
            refused = (
                error.names
                if isinstance(error, _Missing)
                else [key for key in values if error.field in (key, _DURATIONS.get(key))]
            )
            if not replaced.intersection(refused):
                problems.append(str(error))
            for key in refused:
                values.pop(key, None)
                if key in stand_ins and key not in replaced:
                    replaced.add(key)
                    values[key] = stand_ins[key]
            if not refused or (isinstance(error, _Missing) and not set(refused) <= values.keys()):
                return None, problems  # nothing that could be left out


def _build(of: type[Any], values: Mapping[str, Any]) -> Any:
    """One policy from TOML values: durations read, unknown and wrong fields named."""
    converted = _converted(of, values)
    missing = [
        field.name
        for field in fields(of)
        if field.name not in converted and field.default is field.default_factory
    ]
    if missing:
        shown = [
            next((short for short, long in _DURATIONS.items() if long == name), name) for name in missing
        ]
        raise _Missing(shown)
    return of(**converted, **({"source": "toml"} if "source" in _names(of) else {}))


def _changed(policy: Any, values: Mapping[str, Any]) -> Any:
    """A shipped policy with some fields changed."""
    return replace(policy, **_converted(type(policy), values), source="toml")


def _converted(of: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    converted = {}
    known = _names(of)
    for key, value in values.items():
        name = _DURATIONS.get(key, key)
        if name not in known:
            name = key
        if name not in known or name == "source":
            shown = {
                next((short for short, long in _DURATIONS.items() if long == field), field) for field in known
            } - {"source", "name"}
            raise InvalidArgument(f"{key}: there is no such field{or_near(key, sorted(shown))}", field=key)
        converted[name] = (
            seconds(key, value) if key in _DURATIONS and name == _DURATIONS[key] else _typed(of, name, value)
        )
    return converted


def _typed(of: type[Any], name: str, value: Any) -> Any:
    """Refuse a value of the wrong kind before it becomes a strange error somewhere else."""
    hint = str(next(field.type for field in fields(of) if field.name == name))
    wanted = {"str": str, "float": (int, float), "int": int, "bool": bool, "dict": dict, "Literal": str}
    for word, kind in wanted.items():
        if hint.startswith(word):
            if not isinstance(value, kind) or (isinstance(value, bool) and word != "bool"):  # type: ignore[arg-type]
                raise InvalidArgument(
                    f"{name}: must be {_WORDS[word]}, not {type(value).__name__}", field=name
                )
            break
    return value


_WORDS = {
    "str": "a text",
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "dict": "a table",
    "Literal": "a text",
}


def seconds(field: str, value: Any) -> float:
    """A duration: a number of seconds, or "90d", "1h30m". Raises InvalidArgument."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    parts = re.findall(r"(\d+(?:\.\d+)?)([smhdw])", value) if isinstance(value, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise InvalidArgument(
            f"{field}: {str(value)[:40]!r} is not a duration",
            field=field,
            hint='Write "90s", "5m", "2h", "7d" or a number of seconds.',
        )
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _names(of: type[Any]) -> set[str]:
    return {field.name for field in fields(of)}
