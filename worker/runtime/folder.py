"""The folder of the application, by its name: a release may be a link that moves (SPEC W10b).

A process that was forked has its parent's folder as an inode, so it would never see where `current` points
now. Each worker process enters the folder again by its path; from then on it stays with that release.
"""

from __future__ import annotations

import importlib
import os
import stat
import sys
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from packhorse.worker.errors import ConfigError

#: So many entries of a folder are looked at for a link to ours, in so many folders above.
MOST_ENTRIES = 10_000
MOST_FOLDERS = 4


def find(given: Path | None, environ: Mapping[str, str]) -> Path:
    """The path under which processes find the application again; the parent calls it once, at its start.

    `given` (the setting app_dir); else PWD, when it names the folder that we are in; else the one link beside
    or above us that leads here (a service manager sets no PWD); else the folder itself. Raises ConfigError.
    """
    if given is not None:
        path = Path(os.path.normpath(given if given.is_absolute() else find(None, environ) / given))
        reason = problem(path)
        if reason:
            raise ConfigError(
                [f"app_dir: {path}: {reason}; name the folder that holds the modules of your actors"]
            )
        _rename(os.path.realpath(path), str(path))
        return path
    try:
        here = os.getcwd()
    except FileNotFoundError:
        text = "app_dir: the current folder does not exist any more; start in one that does, or set PACKHORSE_APP_DIR"
        raise ConfigError([text]) from None
    path = Path(_logical(here, environ.get("PWD", "")) or _link_to(here) or here)
    _rename(here, str(path))
    return path


def problem(path: Path) -> str | None:
    """Why no process can start in the folder, as a text; None when one can."""
    try:
        return None if stat.S_ISDIR(os.stat(path).st_mode) else "not a folder"
    except OSError as error:
        return error.strerror or type(error).__name__


def enter(path: Path) -> None:
    """Make it the current folder, and let sys.path name the release that it leads to now. Raises
    ConfigError.
    """
    try:
        os.chdir(path)
        here = os.getcwd()
    except OSError as error:
        raise ConfigError([f"app_dir: {path}: {error.strerror}"]) from None
    _rename(str(path), here)
    importlib.invalidate_caches()


def _logical(here: str, said: str) -> str | None:
    """PWD, if it is a name of the folder that we are in."""
    if not os.path.isabs(said) or ".." in said.split("/"):
        return None
    try:
        return os.path.normpath(said) if os.path.samefile(said, here) else None
    except OSError:
        return None


def _link_to(here: str) -> str | None:
    """The link in a folder above through which we were reached, most likely: the only one, or the one called
    `current`.

    Only links of root, of this user, or of the owner of `here`: whoever moves it decides what code runs.
    """
    trusted = {0, os.geteuid(), os.stat(here).st_uid}
    found: dict[str, list[str]] = {}
    for above in islice(Path(here).parents, MOST_FOLDERS):
        try:
            with os.scandir(above) as entries:
                for entry in islice(entries, MOST_ENTRIES):
                    if not entry.is_symlink() or entry.stat(follow_symlinks=False).st_uid not in trusted:
                        continue
                    target = os.path.realpath(entry.path)
                    if len(target) > 1 and (here == target or here.startswith(target + "/")):
                        found.setdefault(target, []).append(entry.path + here[len(target) :])
        except OSError:
            continue
    if not found:
        return None
    nearest = found[max(found, key=len)]
    named = [path for path in nearest if "/current/" in path + "/"]
    return nearest[0] if len(nearest) == 1 else named[0] if len(named) == 1 else None


def _rename(old: str, new: str) -> None:
    """Entries of sys.path in the folder `old` are in the folder `new` from now on."""
    if old != new and len(old) > 1:
        sys.path[:] = [
            new + entry[len(old) :] if (entry + "/").startswith(old + "/") else entry for entry in sys.path
        ]
