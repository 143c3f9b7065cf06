"""The units and manifests that come with the installation, written to a folder of the operator's (SPEC
O7).
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from packhorse.worker.errors import InvalidArgument

SYSTEMD, KUBERNETES = "systemd", "kubernetes"
#: Where systemd looks for units of the administrator.
UNITS_FOLDER = Path("/etc/systemd/system")


@dataclass(frozen=True, slots=True)
class Written:
    """files: relative to the folder, sorted. next: the commands that come next, in their order."""

    folder: Path
    files: list[str]
    next: list[str]


def write(kind: str, folder: Path, *, force: bool = False) -> Written:
    """Write the files of `systemd` or `kubernetes` below the folder, which is made when it is missing.

    force: also into a folder that holds something: a file of the same name is replaced, others stay. Each
    file appears whole or not at all. Raises InvalidArgument when the folder cannot be used; files that were
    written before that stay.
    """
    source = _shipped() / kind
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not force and any(folder.iterdir()):
            raise InvalidArgument(
                f"out: {folder} is not empty",
                field="out",
                hint="Name an empty folder, or say --force: files of the same name are replaced, others stay",
            )
        for name in files:
            _write(folder / name, (source / name).read_bytes())
    except OSError as error:
        where = error.filename2 or error.filename or folder
        raise InvalidArgument(
            f"out: cannot write {where}: {error.strerror}",
            field="out",
            hint="Name a folder that you may write to",
        ) from error
    return Written(folder, [name.as_posix() for name in files], _NEXT[kind](folder))


def _shipped() -> Path:
    """Beside worker/, in the installation as in the repository."""
    return Path(__file__).parent.parent.parent / "deploy"


def _write(path: Path, content: bytes) -> None:
    """A link of that name is replaced, not followed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.new")
    half.write_bytes(content)
    os.replace(half, path)


def _after_systemd(folder: Path) -> list[str]:
    units = shlex.quote(str(folder))
    copy = [] if folder.absolute() == UNITS_FOLDER else [f"cp {units}/*.service {UNITS_FOLDER}/"]
    return [
        *copy,
        "systemctl daemon-reload",
        "systemctl start packhorse-migrate",
        "systemctl enable --now packhorse-worker@my_app.actors packhorse-scheduler@my_app.actors",
        "systemctl enable --now packhorse-web",
    ]


def _after_kubernetes(folder: Path) -> list[str]:
    overlay = shlex.quote(str(folder / "overlays" / "production"))
    return [f"kubectl diff -k {overlay}", f"kubectl apply -k {overlay}"]


_NEXT = {SYSTEMD: _after_systemd, KUBERNETES: _after_kubernetes}
