"""Signatures by Standard Webhooks, with the library `standardwebhooks`; the secrets are in a file that may
change. Needs the extra `push`.
"""

from __future__ import annotations

import base64
import binascii
import logging
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from packhorse.worker.errors import ConfigError

if TYPE_CHECKING:
    from standardwebhooks.webhooks import Webhook

logger = logging.getLogger("packhorse.push")

PUSH_NEEDS = "needs the packages aiohttp and standardwebhooks: pip install 'packhorse[push]'"
PREFIX = "whsec_"
#: Bytes of a secret, as Standard Webhooks has it.
LEAST_BYTES, MOST_BYTES = 24, 64
#: Valid at a time: the new one and the one that it replaces.
MOST_SECRETS = 2
MOST_FILE_BYTES = 4096
#: The file is looked at no more often than this.
LOOK_SECONDS = 1.0
_MAKE = "make one with: echo whsec_$(openssl rand -base64 32)"


def read_secrets(path: Path) -> tuple[list[Webhook], list[str]]:
    """The secrets of a file, one a line, and what is wrong with it; its content is in no text.

    Raises ConfigError without the package.
    """
    try:
        from standardwebhooks.webhooks import Webhook
    except ImportError:
        raise ConfigError([f"push {PUSH_NEEDS}"]) from None
    try:
        with path.open("rb") as file:
            lines = file.read(MOST_FILE_BYTES + 1).decode().splitlines()
    except OSError as error:
        return [], [f"{path} cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return [], [f"{path} is not UTF-8 text"]
    said = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not said:
        return [], [f"{path} holds no secret; {_MAKE}"]
    if len(said) > MOST_SECRETS:
        return [], [
            f"{path} holds {len(said)} secrets; at most {MOST_SECRETS}, one a line, are valid at a time"
        ]
    problems = [f"{path}, line {number}: {wrong}" for number, text in said if (wrong := _wrong_with(text))]
    return ([] if problems else [Webhook(text) for _, text in said]), problems


def _wrong_with(text: str) -> str | None:
    if not text.startswith(PREFIX):
        return f"a secret begins with {PREFIX}; {_MAKE}"
    try:
        size = len(base64.b64decode(text.removeprefix(PREFIX), validate=True))
    except (binascii.Error, ValueError):
        return f"what follows {PREFIX} is not base64; {_MAKE}"
    if not LEAST_BYTES <= size <= MOST_BYTES:
        return f"a secret has {LEAST_BYTES} to {MOST_BYTES} bytes, this one has {size}; {_MAKE}"
    return None


class Secrets:
    """The secrets of one endpoint, read again when their file has changed. Any thread.

    Raises ConfigError when the file is no good at the start. When it is no good later, the secrets that it
    had go on: a file that is written in place is empty for a moment.
    """

    def __init__(self, name: str, path: Path) -> None:
        self._name = name
        self._path = path
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self._look_at = time.monotonic() + LOOK_SECONDS
        self._secrets, problems = read_secrets(path)
        if problems:
            raise ConfigError([f"push {name!r}: secret_file: {problem}" for problem in problems])

    def headers(self, webhook_id: str, body: str) -> dict[str, str]:
        """webhook-id, webhook-timestamp and webhook-signature, one for each valid secret."""
        self._look()
        now = datetime.now(UTC).replace(microsecond=0)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(secret.sign(webhook_id, now, body) for secret in self._secrets),
        }

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._look_at or not self._lock.acquire(blocking=False):
            return
        try:
            self._look_at = now + LOOK_SECONDS
            stamp = self._stamp()
            if stamp == self._seen:
                return
            self._seen = stamp
            secrets, problems = read_secrets(self._path)
            if problems:
                logger.error("push_secrets_refused push=%s problem=%s", self._name, problems[0])
            else:
                self._secrets = secrets
                logger.info("push_secrets_read push=%s secrets=%d", self._name, len(secrets))
        finally:
            self._lock.release()

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino
