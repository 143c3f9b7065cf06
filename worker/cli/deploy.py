"""packhorse deploy: the units and manifests that come with the installation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from packhorse.worker.cli.common import AsJson
from packhorse.worker.cli.render import print_json
from packhorse.worker.exits import EXIT_OK
from packhorse.worker.ops import deploy_files

app = typer.Typer(no_args_is_help=True, help="Units and manifests, written to a folder of yours.")

Out = Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="The folder; made when it is missing.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force", help="Also into a folder that is not empty: replace files of the same name, leave others."
    ),
]


@app.command()
def systemd(out: Out, force: Force = False, as_json: AsJson = False) -> int:
    """Write the units for systemd: worker, scheduler, page, migration."""
    return _write(deploy_files.SYSTEMD, out, force, as_json)


@app.command()
def kubernetes(out: Out, force: Force = False, as_json: AsJson = False) -> int:
    """Write the manifests for Kubernetes: base, components, overlays."""
    return _write(deploy_files.KUBERNETES, out, force, as_json)


def _write(kind: str, out: Path, force: bool, as_json: bool) -> int:
    written = deploy_files.write(kind, out, force=force)
    if as_json:
        print_json({"folder": str(written.folder), "files": written.files, "next": written.next})
        return EXIT_OK
    for name in written.files:
        print(written.folder / name)
    print(
        "",
        "Set in them what is yours (docs/deployment.md), then:",
        *(f"  {command}" for command in written.next),
        sep="\n",
    )
    return EXIT_OK
