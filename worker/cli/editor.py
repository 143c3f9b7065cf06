"""What the commands that edit a payload share: the operator's editor, the difference, what is said when
somebody else was quicker.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from packhorse.worker.cli.errors import CommandError, usage
from packhorse.worker.errors import StoreRejected
from packhorse.worker.ops.payloads import CHANGED_MEANWHILE, pretty


def edit_text(text: str, *, suffix: str) -> str:
    """`text` after $VISUAL or $EDITOR has closed. Raises CommandError when there is none or it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise usage(
            "payload",
            "no --payload given, and neither VISUAL nor EDITOR is set",
            "Give --payload '{...}', or set EDITOR",
        )
    # entered by its owner only: payloads are private
    with tempfile.TemporaryDirectory(prefix="packhorse-") as folder:
        path = Path(folder) / f"payload{suffix}"
        path.write_text(text)
        try:
            code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
        except (OSError, ValueError) as error:
            raise CommandError(
                f"cannot run the editor {editor!r}: {error}", code="editor", field="payload"
            ) from None
        if code != 0:
            raise CommandError(
                f"the editor ended with code {code}; nothing was changed", code="editor", field="payload"
            )
        return path.read_text()


@contextmanager
def seen_by_nobody_else() -> Iterator[None]:
    """Around an edit of what was read before: that somebody else has changed it since is a conflict, and
    nothing was done.
    """
    try:
        yield
    except StoreRejected as error:
        if error.sqlstate != CHANGED_MEANWHILE:
            raise
        raise CommandError(
            str(error), code="conflict", field="payload", hint="Nothing was changed: edit it again"
        ) from error


def edited(payload: Any) -> str:
    """The payload after a person has been at it in $VISUAL or $EDITOR."""
    return edit_text("\n".join(pretty(payload)) + "\n", suffix=".json")
