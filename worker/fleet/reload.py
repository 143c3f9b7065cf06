"""Reload on change, for development (SPEC W13): a child of its own watches source files and asks the parent
to reload, as SIGHUP does.

The parent has one thread and none of the actors' code, and keeps it so. Files are found by name: nothing is
imported to watch it.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from packhorse.worker import forks
from packhorse.worker.errors import ConfigError
from packhorse.worker.exits import EXIT_FAILED, EXIT_OK

logger = logging.getLogger("packhorse.reload")

#: A burst of changes (an editor, a checkout) is one reload: so long nothing may change, so long they are
#: gathered at most.
QUIET_MILLISECONDS, MOST_MILLISECONDS = 200, 2000
#: This often the child looks whether its parent lives.
LOOK_MILLISECONDS = 1000


def check_reload() -> None:
    """Raise ConfigError when files cannot be watched here."""
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError(["reload: needs the extra `reload`: pip install 'packhorse[reload]'"])


@contextmanager
def reloading(modules: Sequence[str], *, ignored: Sequence[Path] = ()) -> Iterator[None]:
    """While the block runs, this process gets SIGHUP after each change of a Python file in the folders of
    `modules` or in the current one.

    ignored: folders in which nothing is source code.
    """
    folders, parent = source_folders(modules, Path.cwd(), sys.path), os.getpid()
    pid = forks.fork_own()
    if not pid:
        code = EXIT_FAILED
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            code = _watch(folders, parent, [str(path.absolute()) for path in ignored])
        except BaseException as error:
            logger.error("reload_watch_failed error=%s: start again to see changes", error)
        finally:
            os._exit(code)
    try:
        yield
    finally:
        with suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)


def source_folders(modules: Sequence[str], here: Path, search: Sequence[str]) -> list[Path]:
    """The folders to watch: `here`, and those of modules that stand elsewhere; none of installed packages,
    none within another.
    """
    found = [here.absolute()]
    for name in modules:
        top = name.partition(".")[0]
        for entry in (Path(entry).absolute() for entry in search if entry):
            if (entry / top).is_dir() or (entry / f"{top}.py").is_file():
                if "site-packages" not in entry.parts:
                    found.append(entry / top if (entry / top).is_dir() else entry)
                break
    return [
        path
        for path in dict.fromkeys(found)
        if not any(other != path and path.is_relative_to(other) for other in found)
    ]


def _watch(folders: list[Path], parent: int, ignored: list[str]) -> int:
    """Until the parent is gone; the exit code."""
    from watchfiles import DefaultFilter, watch

    source = DefaultFilter(ignore_paths=ignored)
    changes = watch(
        *folders,
        watch_filter=lambda change, path: path.endswith(".py") and source(change, path),
        debounce=MOST_MILLISECONDS,
        step=QUIET_MILLISECONDS,
        rust_timeout=LOOK_MILLISECONDS,
        yield_on_timeout=True,
        ignore_permission_denied=True,
        raise_interrupt=False,
    )
    logger.info("reload_watches folders=%s", ", ".join(map(str, folders)))
    for changed in changes:
        if os.getppid() != parent:
            return EXIT_OK
        if changed:
            logger.info("source_changed path=%s count=%d", min(path for _, path in changed), len(changed))
            os.kill(parent, signal.SIGHUP)
    return EXIT_OK
