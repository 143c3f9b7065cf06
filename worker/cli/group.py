"""The command `packhorse` before anything is added to it: its name, its help and the options of all
commands.
"""

from __future__ import annotations

from typing import Annotated

import typer

from packhorse.worker.version import __version__


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"packhorse {__version__}")
        raise typer.Exit()


def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
    traceback: Annotated[
        bool, typer.Option("--traceback", help="Show the traceback of an error; for bug reports.")
    ] = False,
) -> None:
    pass


def group() -> typer.Typer:
    """The command without what it can do."""
    found = typer.Typer(
        name="packhorse",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Background work on the Postgres you already have. Start with: packhorse up",
    )
    found.callback()(_root)
    return found
