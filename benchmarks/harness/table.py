"""The end of a run: one table of medians with their range, and the ratios that the project promises."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.console import Console
from rich.table import Table

from benchmarks.harness.results import Results
from benchmarks.harness.stats import median


@dataclass(frozen=True)
class Cell:
    """The address of one number in the results."""

    system: str
    metric: str
    variant: str
    processes: int = 1


@dataclass(frozen=True)
class Ratio:
    """One promised quotient, taken round by round."""

    label: str
    over: Cell
    under: Cell


def _same_cell(label: str, metric: str, variant: str, peer: str, processes: int = 1) -> Ratio:
    """Packhorse over a peer in the same cell."""
    return Ratio(label, Cell("packhorse", metric, variant, processes), Cell(peer, metric, variant, processes))


def _inside(label: str, system: str, metric: str, over: str, under: str) -> Ratio:
    """Two variants of one system."""
    return Ratio(f"{label} ({system})", Cell(system, metric, over), Cell(system, metric, under))


def ratios(results: Results) -> Iterator[Ratio]:
    """Every quotient of interest; those without rows are left out by the caller."""
    for processes in (1, 2):
        for peer in ("dramatiq-stub", "raw"):
            label = f"work, {processes} process{'es' if processes > 1 else ''}: packhorse / {peer}"
            yield _same_cell(label, "work", "drain", peer, processes)
    yield _same_cell("enqueue single: packhorse / raw", "enqueue", "single", "raw")
    yield _same_cell("enqueue bulk: packhorse / raw", "enqueue", "bulk", "raw")
    yield _same_cell("enqueue, 16 producers: packhorse / raw", "enqueue", "producers16", "raw", 4)
    for rank in ("p50", "p99"):
        yield _same_cell(f"pickup {rank}: packhorse / raw", "pickup", f"listen {rank}", "raw")
    for system in ("packhorse", "raw"):
        yield _inside("backlog: with / without", system, "backlog", "with", "without")
        firsts = {row.variant for row in results.rows if row.variant.endswith("first tenth")}
        for first in sorted(firsts):
            count = first.removesuffix(" first tenth")
            label = f"snapshot {count}: last / first tenth"
            yield _inside(label, system, "snapshot", f"{count} last tenth", first)
    for variant in ("one-conversation", "one-conversation-unseen"):
        yield _inside(f"{variant}: with / without", "packhorse", "backlog", variant, "distinct-keys")
    for processes in (1, 2):
        for what in ("on", "on, a line per message"):
            over, under = (
                Cell("packhorse", "observability", f"drain {which}", processes) for which in (what, "off")
            )
            label = f"metrics and logs {what} / off, {processes} process{'es' if processes > 1 else ''}"
            yield Ratio(f"drain, {label}", over, under)
            yield Ratio(
                f"cpu of the worker, {label}",
                *(replace(cell, variant=f"{cell.variant}: cpu of the worker") for cell in (over, under)),
            )
    for cell in ("1,000 ms, 5,000 at once", "50 ms, 400 at once", "no-op, async"):
        for peer in ("pgqueuer", "procrastinate", "dramatiq-redis", "graphile-worker"):
            yield _same_cell(f"waiting, {cell}: packhorse / {peer}", "waiting", cell, peer)
    for system in ("packhorse", "dramatiq-redis", "procrastinate"):
        yield _inside("no-op, async / sync", system, "waiting", "no-op, async", "no-op, sync")
    yield _inside(
        "sync pickup p99, beside waiting coroutines / alone",
        "packhorse",
        "waiting",
        "sync pickup beside p99",
        "sync pickup alone p99",
    )
    for label, over, under in (
        ("drain beside retention / alone", "drain beside", "drain alone"),
        ("pickup p99 beside retention / alone", "pickup beside p99", "pickup alone p99"),
        ("retention / one DELETE", "delete by retention", "delete by one statement"),
        (
            "deleting a day / locks of detaching it",
            "partition rows deleted and vacuumed",
            "partition detach: locks on its parent",
        ),
        (
            "deleting a day / dropping its partition",
            "partition rows deleted and vacuumed",
            "partition detach and drop",
        ),
    ):
        yield _inside(label, "packhorse", "maintenance", over, under)


def quotient(results: Results, ratio: Ratio) -> list[float]:
    """The quotient of each round that measured both sides; empty when none did."""
    over, under = (
        results.by_round(cell.system, cell.metric, cell.variant, cell.processes)
        for cell in (ratio.over, ratio.under)
    )
    return [over[number] / under[number] for number in sorted(over.keys() & under.keys()) if under[number]]


def number(value: float) -> str:
    """Whole numbers above 1,000, else up to two decimals."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:,.2f}"


def _medians(results: Results) -> Table:
    table = Table(title="Medians (min-max over rounds)")
    for column in ("metric", "variant", "processes", "system"):
        table.add_column(column, no_wrap=True)
    for column in ("median", "min-max"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    grouped = results.groups()
    seen: dict[tuple[str, str, int, str], None] = {key[:4]: None for key in grouped}
    for cell in sorted(seen, key=lambda each: [key[0] for key in grouped].index(each[0])):
        rows = [(key[4], values) for key, values in grouped.items() if key[:4] == cell]
        for position, (system, values) in enumerate(rows):
            span = f"{number(min(values))}-{number(max(values))}" if len(values) > 1 else ""
            cells = (cell[0], cell[1], str(cell[2]), system, number(median(values)), span, cell[3])
            table.add_row(*cells, end_section=position == len(rows) - 1)
    return table


def _ratios(results: Results) -> Table | None:
    table = Table(title="Ratios (median of the rounds' ratios, min-max)")
    table.add_column("ratio", no_wrap=True)
    for column in ("median", "min-max"):
        table.add_column(column, justify="right", no_wrap=True)
    for ratio in ratios(results):
        values = quotient(results, ratio)
        if values:
            span = f"{min(values):.2f}-{max(values):.2f}" if len(values) > 1 else ""
            table.add_row(ratio.label, f"{median(values):.2f}", span)
    return table if table.row_count else None


def show(results: Results) -> None:
    """Print the medians and, where both sides were measured, the ratios."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(_medians(results))
    quotients = _ratios(results)
    if quotients is not None:
        console.print(quotients)
