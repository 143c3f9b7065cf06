"""Node and the packages of the one peer that is not Python, kept in benchmarks/.node.

Node itself comes from the npm package of this kind of machine when the machine's own is too old: the package
`node` would run a script to fetch it, which npm may not allow.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path

from benchmarks.harness.config import HOME

FOLDER = HOME / ".node"
NODE = "22.23.3"
BINARY = f"node-linux-{'arm64' if platform.machine() == 'aarch64' else 'x64'}"
OLDEST_NODE = (22, 18)
INSTALL_SECONDS = 300


class NoNode(RuntimeError):
    """Why Node or a package is not to be had."""


def version_of(binary: str) -> tuple[int, ...]:
    """For example (22, 23, 3); empty when it does not run."""
    try:
        said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(int(part) for part in said.stdout.strip().lstrip("v").split(".")[:3])


def ensure(packages: dict[str, str]) -> str:
    """Path of a Node of at least OLDEST_NODE, with `packages` (name to version) installed in FOLDER.

    Installs what is missing with npm. Raises NoNode.
    """
    wanted = dict(packages)
    system = shutil.which("node")
    if system is None or version_of(system)[:2] < OLDEST_NODE:
        wanted[BINARY] = NODE
    if not all(_installed(name, version) for name, version in wanted.items()):
        _install(wanted)
    binary = str(FOLDER / "node_modules" / BINARY / "bin" / "node") if BINARY in wanted else system
    if binary is None or version_of(binary)[:2] < OLDEST_NODE:
        raise NoNode(f"no Node of at least {'.'.join(map(str, OLDEST_NODE))}")
    return binary


def _installed(name: str, version: str) -> bool:
    manifest: Path = FOLDER / "node_modules" / name / "package.json"
    return manifest.exists() and json.loads(manifest.read_text()).get("version") == version


def _install(packages: dict[str, str]) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise NoNode("npm is not installed")
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "package.json").write_text(json.dumps({"private": True, "dependencies": packages}) + "\n")
    command = [npm, "install", "--no-audit", "--no-fund", "--no-package-lock"]
    try:
        done = subprocess.run(
            command, cwd=FOLDER, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNode(f"npm install failed: {error}") from error
    if done.returncode:
        raise NoNode(f"npm install failed: {done.stderr.strip()[-300:]}")
