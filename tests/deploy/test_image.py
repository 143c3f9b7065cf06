"""The image of deploy/Containerfile, really built and run (issue 4). Needs root, buildah and debootstrap;
about two minutes.

The base image is a small Debian made here, under the build argument that the file has for it; packages come
from a folder that pip fills on this host, so that the build itself needs no network.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Server
from tests.support.waiting import wait_until
from tests.support.workers import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

USER = "10001:10001"
BASE = "localhost/python-base"
IMAGE = "localhost/packhorse"
Buildah = Callable[..., str]


def run(*command: str | Path, **options: object) -> str:
    """Must succeed; what it prints."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, **options
    )  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout).strip()


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Buildah, list[str]]]:
    """`buildah` with a storage of its own that holds the image; and the first words of its command line."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: apt-get install {program})")
    home = tmp_path_factory.mktemp("image")
    storage = ["buildah", "--root", str(home / "storage"), "--runroot", str(home / "run")]
    environment = {**os.environ, "STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}

    def buildah(*arguments: str | Path) -> str:
        return run(*storage, *arguments, env=environment)

    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", home / "tree")
    (home / "tree/usr/bin/python").symlink_to("python3")
    container = buildah("from", "scratch")
    buildah("add", "--quiet", container, home / "tree", "/")
    buildah("commit", "--quiet", "--rm", container, BASE)
    wheels = home / "wheels"
    run(
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--dest",
        wheels,
        "--python-version",
        "3.11",
        "--only-binary=:all:",
        "--constraint",
        ROOT / "constraints.txt",
        "hatchling",
        # of redis, before Python 3.11.3: pip asks the Python that runs it, not the one in the image
        "async-timeout",
        *json.loads(run(sys.executable, "-c", REQUIREMENTS, cwd=ROOT)),
    )
    (home / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    buildah(
        "bud",
        "--quiet",
        "--build-arg",
        f"PYTHON={BASE}",
        "--volume",
        f"{wheels}:/wheels:ro",
        "--volume",
        f"{home / 'pip.conf'}:/etc/pip.conf:ro",
        "--file",
        ROOT / "deploy/Containerfile",
        "--tag",
        "packhorse",
        ROOT,
    )
    yield buildah, storage
    buildah("rm", "--all")
    for path in home.iterdir():
        shutil.rmtree(path, ignore_errors=True)


REQUIREMENTS = "import json, tomllib; print(json.dumps(tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'] + tomllib.load(open('pyproject.toml', 'rb'))['project']['optional-dependencies']['web']))"
ACTOR = """
import dramatiq

@dramatiq.actor(queue_name="default", actor_name="effect")
def effect(key):
    with open("/tmp/shared/ledger", "a") as ledger:
        ledger.write(key)
"""


def test_a_worker_in_the_image_does_its_work(
    image: tuple[Buildah, list[str]], own_server: Server, tmp_path: Path
) -> None:
    """Runs as nobody in particular, an application as one more layer, DATABASE_URL from outside; nothing in
    it for tests or laptops.
    """
    buildah, storage = image
    config = json.loads(buildah("inspect", "--type", "image", IMAGE))["OCIv1"]["config"]
    assert (
        config["User"] == USER and config["Entrypoint"] == ["packhorse"] and config["StopSignal"] == "SIGTERM"
    )
    database = own_server.create_database()
    own_server.socket_dir.chmod(0o755)  # of this test's server only
    database.query("select declare_queue('default')")
    database.query("select enqueue_message('default', 'effect', '{\"key\": \"done\"}')")
    for name in ("shared", "app"):
        (tmp_path / name).mkdir()
    (tmp_path / "shared").chmod(0o777)
    (tmp_path / "app/application.py").write_text(ACTOR)
    container = buildah("from", IMAGE)
    buildah("copy", "--quiet", container, tmp_path / "app", "/app")
    listed = buildah("run", "--user", USER, container, "--", "/opt/packhorse/bin/pip", "list")
    assert "dramatiq" in listed and "pixeltable" not in listed and "pytest" not in listed
    volumes = [f"{own_server.socket_dir}:{own_server.socket_dir}", f"{tmp_path / 'shared'}:/tmp/shared"]
    worker = subprocess.Popen(
        [
            *storage,
            "run",
            "--isolation",
            "chroot",
            "--user",
            USER,
            *(f"--volume={volume}" for volume in volumes),
            "--env",
            f"DATABASE_URL={database.url}",
            container,
            "--",
            "packhorse",
            "worker",
            "application",
        ],
        env={**os.environ, "STORAGE_DRIVER": "vfs"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(
            lambda: (tmp_path / "shared/ledger").exists() or worker.poll() is not None, 60, "the effect"
        )
        assert worker.poll() is None, worker.communicate()[0]
        wait_until(lambda: database.value("select count(*) from message_archive") == 1, 20, "done")
    finally:
        worker.terminate()
        worker.communicate(timeout=60)
    assert (tmp_path / "shared/ledger").read_text() == "done"
