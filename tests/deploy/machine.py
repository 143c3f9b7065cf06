"""A machine that boots systemd with our units: systemd-nspawn on an overlay of this host's own root, thrown
away afterwards.

Nothing is downloaded and nothing on the host changes: the overlay's upper layer is a tmpfs. The units see the
interpreter at /opt/packhorse (home directories are hidden from them), a copy of this checkout's code at
/srv/packhorse (it stays the same while somebody edits the original) and the test's PostgreSQL at
/srv/postgres.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.waiting import wait_until
from tests.support.workers import ROOT

PYTHON = "/opt/python"
TARGET = "[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n"
COMMAND = "#!/opt/packhorse/bin/python\nfrom packhorse.worker.cli.program import main\n\nmain()\n"
#: what a test needs in every unit: code and interpreter of this checkout, a ledger that outlives the service
DROP_IN = f"""[Service]
Environment=PYTHONPATH=/srv/packhorse LD_LIBRARY_PATH={PYTHON}/lib LEDGER=/var/lib/packhorse-ledger/ledger
StateDirectory=packhorse-ledger
"""


def missing() -> str | None:
    """Why this host cannot boot a machine; None when it can."""
    if os.geteuid() != 0:
        return "needs root"
    for program in ("systemd-nspawn", "nsenter", "mount", "umount"):
        if shutil.which(program) is None:
            return f"{program} is not installed (Debian: systemd-container)"
    if not Path("/lib/systemd/systemd").exists():
        return "systemd is not installed"
    return None


class CannotBoot(Exception):
    """This host has the programs, but not the right to mount or to boot; the text says which."""


class Machine:
    """Boots in the constructor, or raises CannotBoot; `close` ends it. folder: an empty directory. binds:
    host path -> path inside, writable.
    """

    def __init__(self, folder: Path, binds: dict[str, str]) -> None:
        self.folder = folder
        self.root = folder / "root"
        self._layer = folder / "layer"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self._mount()
            self._furnish()
            self._boot(binds)
        except BaseException:
            self.close()
            raise

    def _mount(self) -> None:
        for path in (self.root, self._layer):
            path.mkdir()
        _mount("-t", "tmpfs", "tmpfs", str(self._layer))
        for name in ("upper", "work"):
            (self._layer / name).mkdir()
        layers = f"lowerdir=/,upperdir={self._layer}/upper,workdir={self._layer}/work"
        _mount("-t", "overlay", "overlay", "-o", layers, str(self.root))

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """A file inside, by its path inside."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def _furnish(self) -> None:
        """Our units and nothing that the host has enabled; an environment as docs/deployment.md makes it."""
        for path in ("etc/systemd/system", "opt/packhorse"):
            shutil.rmtree(self.root / path, ignore_errors=True)
        for name in ("packhorse", "tests"):
            shutil.copytree(
                ROOT / name,
                self.root / "srv" / "packhorse" / name,
                ignore=shutil.ignore_patterns("__pycache__"),
            )
        shutil.copytree(ROOT / "deploy" / "systemd", self.root / "etc" / "systemd" / "system")
        self.write("/etc/systemd/system/packhorse-test.target", TARGET)
        for name in ("packhorse-worker@", "packhorse-scheduler@", "packhorse-migrate"):
            self.write(f"/etc/systemd/system/{name}.service.d/test.conf", DROP_IN)
        self.write("/opt/packhorse/bin/packhorse", COMMAND, 0o755)
        self.write(
            "/opt/packhorse/pyvenv.cfg", f"home = {PYTHON}/bin\ninclude-system-site-packages = false\n"
        )
        (self.root / "opt/packhorse/bin/python").symlink_to(f"{PYTHON}/bin/python3")
        (self.root / "etc/packhorse/credentials").mkdir(parents=True, mode=0o700)

    def _boot(self, binds: dict[str, str]) -> None:
        site = f"/opt/packhorse/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        read_only = {sys.base_prefix: PYTHON, sysconfig.get_path("purelib"): site}
        options = [f"--bind-ro={source}:{target}" for source, target in read_only.items()]
        options += [f"--bind={source}:{target}" for source, target in binds.items()]
        with (self.folder / "console").open("wb") as console:
            self._process = subprocess.Popen(
                [
                    "systemd-nspawn",
                    "--quiet",
                    "--register=no",
                    "--keep-unit",
                    f"--directory={self.root}",
                    f"--machine=packhorse-{os.getpid()}",
                    *options,
                    "--boot",
                    "--",
                    "systemd.unit=packhorse-test.target",
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        wait_until(
            lambda: self._ended() or self.state("packhorse-test.target") == "active",
            60,
            "the machine has booted",
        )
        if self._ended():
            raise CannotBoot((self.folder / "console").read_text(errors="replace")[-500:])

    def _ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """A command inside, as root."""
        assert self._process is not None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        if not children:
            return subprocess.CompletedProcess(command, 1, "", "not there yet")
        return subprocess.run(
            ["nsenter", "--target", children[0], "--all", "--", *command],
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def systemctl(self, *arguments: str) -> str:
        """Must succeed; what it prints."""
        done = self.run("systemctl", *arguments)
        assert done.returncode == 0, (
            f"{done.stderr}\n{self.run('journalctl', '--no-pager', '-n', '60', '-o', 'cat').stdout}"
        )
        return done.stdout.strip()

    def state(self, unit: str) -> str:
        """active, activating, reloading, inactive, failed …"""
        return self.run("systemctl", "is-active", unit).stdout.strip()

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.systemctl("show", "--value", "--property", name, unit)

    def log(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-u", unit).stdout

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()  # nspawn powers the machine off
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(10)
        for path in (self.root, self._layer):
            subprocess.run(["umount", "--lazy", path], capture_output=True, check=False)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotBoot(done.stderr.strip())
