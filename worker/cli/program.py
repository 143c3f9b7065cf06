"""The program `packhorse`: finds the command, turns every error into a line and an exit code
(worker/exits.py).

The command is assembled alone: a daemon keeps what it has imported for as long as it lives, in every process
that it forks (the other commands need most of the package, 3 MiB), and any other ends before all were loaded.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import Any, TextIO

import typer

from packhorse.worker.cli.commands import COMMANDS, assembled
from packhorse.worker.cli.errors import ErrorReport, describe, report, usage
from packhorse.worker.errors import WorkerError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK, EXIT_USAGE

_TYPER_INTERRUPTED = 130

#: What a write to a full disk, a full quota or a file that may not grow answers.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _command(arguments: list[str]) -> typer.Typer:
    """What these arguments need: the one command, or all for the help and for a name that is none."""
    return assembled(arguments[:1] if arguments[:1] and arguments[0] in COMMANDS else COMMANDS)


def run(arguments: list[str]) -> int:
    """Run one command line; the exit code. Everything that can be expected to go wrong is one line on
    stderr.
    """
    as_json = "--json" in arguments
    try:
        for text in arguments:
            if not _is_text(text):
                shown = ascii(text[:60])
                raise usage(
                    "arguments",
                    f"{shown} is not text in this locale",
                    "Write it in UTF-8, with LANG=C.UTF-8 or another locale of UTF-8",
                )
        code = int(_command(arguments)(arguments, prog_name="packhorse", standalone_mode=False) or EXIT_OK)
        if code == _TYPER_INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            raise KeyboardInterrupt
        return code
    except WorkerError as error:
        if "--traceback" in arguments:
            raise
        return report(describe(error), as_json=as_json)
    except (KeyboardInterrupt, typer.Abort):
        return report(ErrorReport("interrupted", "interrupted", EXIT_FAILED), as_json=as_json)
    except typer.TyperException as error:
        return _report_usage(error, as_json)
    except BrokenPipeError:
        # the reader (head, less) has enough; keep the interpreter from failing over it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:  # top of the program: a bug of ours is reported as one
        if "--traceback" in arguments:
            raise
        if isinstance(error, OSError) and error.errno in _FULL:
            return _report_full(error, as_json)
        text = f"internal error: {type(error).__name__}: {error}"
        return report(
            ErrorReport(
                "internal", text, EXIT_FAILED, None, "A bug of ours; `packhorse --traceback ...` shows where"
            ),
            as_json=as_json,
        )


def _is_text(text: str) -> bool:
    """Python hands over bytes that the locale cannot read as lone surrogates, which neither PostgreSQL nor an
    error line can take.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _nowhere() -> TextIO:
    return open(os.devnull, "w", encoding="utf-8")  # open until the process ends


def _report_full(error: OSError, as_json: bool) -> int:
    """What the command had to say could not be written; what it had to do may be done."""
    sys.stdout = _nowhere()  # what is still buffered would fail again at exit
    return report(
        ErrorReport("failed", f"the output cannot be written: {error.strerror}", EXIT_FAILED), as_json=as_json
    )


def _report_usage(error: Any, as_json: bool) -> int:
    """Wrong options and arguments, in typer's words."""
    if type(error).__name__ == "NoArgsIsHelpError":  # a group without a command: its help is the answer
        print(error.format_message(), file=sys.stderr)
        return EXIT_USAGE
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return report(
        ErrorReport(
            "usage",
            text.replace("Value error, ", "").rstrip("."),
            EXIT_USAGE,
            parameter.name if parameter is not None else None,
            f"See: {context.command_path} --help" if context is not None else None,
        ),
        as_json=as_json,
    )


def main() -> None:
    """Entry point of the `packhorse` script."""
    # started with a closed descriptor (`>&-`, some cron jobs) Python has None there
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a terminal of Latin-1 still sees what there is
    # a command says its errors itself, as one document with --json; daemons set their log up
    logging.getLogger().addHandler(logging.NullHandler())
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_OK
    except OSError as error:
        code = _report_full(error, "--json" in sys.argv)
    sys.exit(code)


if __name__ == "__main__":
    main()
