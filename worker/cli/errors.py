"""Every error as an operator sees it: one line that names field and fix, an exit code, a stable `code` for
scripts.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass

from packhorse.worker.errors import (
    AdoptionRefused,
    ConfigError,
    InvalidArgument,
    MigrationError,
    SchemaMismatch,
    StoreConflict,
    StoreError,
    StoreUnavailable,
    UnknownQueue,
    WorkerError,
)
from packhorse.worker.exits import EXIT_FAILED, EXIT_SCHEMA, EXIT_UNAVAILABLE, EXIT_USAGE

#: SQLSTATE -> what an operator can do about it.
_HINTS = {
    "42P07": "Something of this name is there already. Packhorse needs a schema of its own: PACKHORSE_DB_SCHEMA",
    "25006": "This server is read-only (a replica?): connect to the primary",
    "42501": "Log in as a role in packhorse_worker (packhorse_reader is enough to look), for migrations as their owner (docs/deployment.md: roles)",
    "3D000": "Create the database, or correct DATABASE_URL",
    "28P01": "Correct the password in DATABASE_URL",
    "28000": "Correct the role in DATABASE_URL",
    "53300": "Too many connections: end some, or raise max_connections",
}


class CommandError(WorkerError):
    """A command refuses, for a reason that only the command line knows."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "failed",
        field: str | None = None,
        hint: str | None = None,
        exit_code: int = EXIT_FAILED,
    ) -> None:
        self.code, self.field, self.hint, self.exit_code = code, field, hint, exit_code
        super().__init__(message)


def usage(field: str, message: str, hint: str | None = None) -> CommandError:
    """The error for an argument that cannot be used; exit code 2."""
    return CommandError(f"{field}: {message}", code="usage", field=field, hint=hint, exit_code=EXIT_USAGE)


@dataclass(frozen=True, slots=True)
class ErrorReport:
    """One error, ready to print. `problems`: all of them where there can be several."""

    code: str
    message: str
    exit_code: int
    field: str | None = None
    hint: str | None = None
    problems: tuple[str, ...] = ()


def describe(error: WorkerError) -> ErrorReport:
    """The ErrorReport of any error that Packhorse raises on purpose."""
    from packhorse.worker.db.embedded import EmbeddedError, EmbeddedMissing

    if isinstance(error, CommandError):
        return ErrorReport(error.code, str(error), error.exit_code, error.field, error.hint)
    if isinstance(error, ConfigError):
        field = error.problems[0].split(":")[0].split(" ")[0] if len(error.problems) == 1 else None
        return ErrorReport(
            "config", " | ".join(error.problems), EXIT_USAGE, field, None, tuple(error.problems)
        )
    if isinstance(error, SchemaMismatch):
        text, _, hint = str(error).partition(". ")
        return ErrorReport("schema", text, EXIT_SCHEMA, None, hint or None)
    if isinstance(error, InvalidArgument):
        return _describe_argument(error)
    if isinstance(error, StoreUnavailable):
        # libpq's own hints: ours says more
        text = "\n".join(line for line in str(error).splitlines() if not line.startswith("\t"))
        hint = _HINTS.get(
            error.sqlstate or "",
            "Is the server up, and DATABASE_URL right? `packhorse config show` prints it",
        )
        return ErrorReport("unavailable", f"database: {text}", EXIT_UNAVAILABLE, "database_url", hint)
    if isinstance(error, StoreConflict):
        return ErrorReport(
            "conflict",
            f"database: {error}",
            EXIT_FAILED,
            None,
            "Somebody else holds what this needs: run it again",
        )
    if isinstance(error, StoreError):
        return ErrorReport(
            "rejected", f"database: {error}", EXIT_FAILED, None, _HINTS.get(error.sqlstate or "")
        )
    if isinstance(error, AdoptionRefused):
        return ErrorReport("migration", str(error), EXIT_FAILED, problems=tuple(error.problems))
    if isinstance(error, MigrationError):
        return ErrorReport("migration", str(error), EXIT_FAILED)
    if isinstance(error, EmbeddedError):
        return ErrorReport(
            "unavailable",
            str(error),
            EXIT_UNAVAILABLE,
            "database_url" if isinstance(error, EmbeddedMissing) else "data_dir",
        )
    return ErrorReport("failed", str(error), EXIT_FAILED)


def _describe_argument(error: InvalidArgument) -> ErrorReport:
    from packhorse.worker.errors import NotFound

    text = str(error).removesuffix(f". {error.hint}") if error.hint else str(error)
    if isinstance(error, UnknownQueue):
        return ErrorReport("unknown_queue", text, EXIT_FAILED, error.field or "queue", error.hint)
    if isinstance(error, NotFound):
        return ErrorReport("not_found", text, EXIT_FAILED, error.field, error.hint)
    return ErrorReport("invalid_argument", text, EXIT_USAGE, error.field, error.hint or None)


def report(problem: ErrorReport, *, as_json: bool) -> int:
    """Print an ErrorReport on stderr; returns its exit code."""
    if as_json:
        body: dict[str, object] = {
            "code": problem.code,
            "message": one_line(problem.message),
            "field": problem.field,
            "hint": problem.hint,
        }
        if problem.problems:
            body["problems"] = list(problem.problems)
        print(json.dumps({"error": body}, ensure_ascii=False), file=sys.stderr)
    else:
        for text in problem.problems or (problem.message,):
            print(f"packhorse: {_sentences(text, problem.hint)}", file=sys.stderr)
    return problem.exit_code


def _sentences(text: str, hint: str | None) -> str:
    """Text and hint on one line, each with one mark at its end: both may come from a library or the server,
    which end as they like.
    """
    if not hint:
        return one_line(text)
    return " ".join(
        said if said.endswith(("?", "!")) else f"{said.rstrip('.')}."
        for said in (one_line(text), one_line(hint))
    )


def one_line(text: str) -> str:
    """Text on one line, without control characters: values of others may stand in it."""
    return "".join(char if char.isprintable() else "\ufffd" for char in " ".join(text.split()))
