"""packhorse web: the page."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from packhorse.worker.cli.common import configure_logging, database_url
from packhorse.worker.cli.errors import CommandError
from packhorse.worker.config import load_settings
from packhorse.worker.exits import EXIT_OK, EXIT_UNAVAILABLE

#: What the extra `web` brings.
NEEDS = ("starlette", "jinja2", "uvicorn", "httptools")
PAGE_NEEDS = "not installed: pip install 'packhorse[web]'"


def missing() -> str | None:
    """The first package that the page lacks; None when it has all."""
    from importlib.util import find_spec

    return next((name for name in NEEDS if find_spec(name) is None), None)


def web(
    host: Annotated[
        str | None, typer.Option("--host", help="Address; beyond loopback everybody has to log in.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Port; 0: any free one, which is printed.")
    ] = None,
    api: Annotated[
        bool, typer.Option("--api", help="Also let programs enqueue: POST /v1/messages, with a token.")
    ] = False,
    api_only: Annotated[bool, typer.Option("--api-only", help="Only that, and no page.")] = False,
) -> int:
    """Serve the page: see and steer everything in a browser, until Ctrl-C or SIGTERM."""
    if (lacks := missing()) is not None:
        raise CommandError(
            f"the page needs the package {lacks}",
            code="unavailable",
            hint="pip install 'packhorse[web]'",
            exit_code=EXIT_UNAVAILABLE,
        )
    settings = load_settings(
        web_host=host, web_port=port, web_api="only" if api_only else "on" if api else None
    )
    configure_logging(settings)
    from packhorse.worker.web import serve

    url = None if settings.web_databases else database_url(settings)
    serve.run(settings, url, _say)
    return EXIT_OK


def _say(address: str) -> None:
    print(f"Page       {address}      (Ctrl-C ends it)")
    sys.stdout.flush()
