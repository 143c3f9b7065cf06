"""Open a text in the operator's editor."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from packhorse.worker.cli.errors import CommandError, usage


def edit_text(text: str, *, suffix: str) -> str:
    """`text` after $VISUAL or $EDITOR has closed. Raises CommandError when there is none or it fails."""
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR")
    if not editor:
        raise usage("payload", "no --payload given, and neither VISUAL nor EDITOR is set", "Give --payload '{...}', or set EDITOR")
    with tempfile.TemporaryDirectory(prefix="packhorse-") as folder:  # entered by its owner only: payloads are private
        path = Path(folder) / f"payload{suffix}"
        path.write_text(text)
        try:
            code = subprocess.run([*shlex.split(editor), str(path)], check=False).returncode
        except (OSError, ValueError) as error:
            raise CommandError(f"cannot run the editor {editor!r}: {error}", code="editor", field="payload") from None
        if code != 0:
            raise CommandError(f"the editor ended with code {code}; nothing was changed", code="editor", field="payload")
        return path.read_text()


def pretty(payload: Any) -> list[str]:
    """The lines of a payload as people compare it."""
    return json.dumps(payload, indent=2, sort_keys=True, ensure_ascii=False).splitlines()


def edited(payload: Any) -> str:
    """The payload after a person has been at it in $VISUAL or $EDITOR."""
    return edit_text("\n".join(pretty(payload)) + "\n", suffix=".json")
