"""Pipes that nobody reads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_pipe() -> Iterator[tuple[int, int]]:
    """A pipe without any room, its ends to read and to write; a write to it blocks. Both are closed at the
    end.
    """
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"x" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    try:
        yield read, write
    finally:
        os.close(read)
        os.close(write)
