"""Log lines into a pipe that nobody reads (worker/observe.log_stream.py): lines are lost, nobody waits for
ever.
"""

from __future__ import annotations

import os
import threading

import pytest

from packhorse.worker.observe.log_stream import LogStream
from tests.support.pipes import full_pipe


@pytest.fixture
def pipe():
    """A pipe without any room: the end to read, and a stream on the other one."""
    with full_pipe() as (read, write), os.fdopen(write, "w", closefd=False) as stream:
        yield read, stream


def empty(read, size=4096 * 16):
    found = b""
    while len(found) < size:
        found += os.read(read, size - len(found))


def put(log_stream, stream, text):
    """In a thread of its own: a write that never ends fails the test, and not the run."""
    answers = []
    thread = threading.Thread(target=lambda: answers.append(log_stream.write(stream, text)), daemon=True)
    thread.start()
    thread.join(20)
    return answers


def test_a_pipe_that_nobody_reads_costs_lines_and_holds_up_nobody(pipe):
    read, stream = pipe
    log_stream = LogStream()
    assert (
        put(log_stream, stream, "one\n") == [False]
        and put(log_stream, stream, "two\n") == [False]
        and log_stream.lost == 2
    )
    empty(read)
    assert put(log_stream, stream, "three\n") == [True]
    assert os.read(read, 100) == b"three\n"


def test_the_line_after_a_torn_one_begins_on_a_line_of_its_own(pipe):
    read, stream = pipe
    log_stream = LogStream()
    empty(read, 4096)
    assert put(log_stream, stream, "x" * 10_000 + "\n") == [False]
    empty(read)
    assert put(log_stream, stream, "next\n") == [True]
    assert os.read(read, 100) == b"\nnext\n"


def test_a_reader_that_is_gone_is_an_error(pipe):
    read, stream = pipe
    os.dup2(os.open(os.devnull, os.O_RDONLY), read)
    with pytest.raises(BrokenPipeError):
        LogStream().write(stream, "one\n")


def test_what_another_character_set_cannot_say_is_escaped(tmp_path):
    with (tmp_path / "log").open("w", encoding="ascii") as stream:
        assert LogStream().write(stream, "né\n")
    assert (tmp_path / "log").read_bytes() == b"n\\xe9\n"


@pytest.fixture
def writes(monkeypatch):
    """The lengths of what goes out at once."""
    lengths, write = [], os.write
    monkeypatch.setattr(
        "packhorse.worker.observe.log_stream.os.write",
        lambda descriptor, data: lengths.append(len(data)) or write(descriptor, data),
    )
    return lengths


def test_a_long_line_goes_out_whole_where_there_is_room(writes, tmp_path):
    """What another process writes would stand in the middle of it."""
    text = "x" * 20_000 + "\n"
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, (tmp_path / "log").open("w") as file:
        assert LogStream().write(stream, text) and LogStream().write(file, text)
        assert writes == [len(text)] * 2
        empty(read, len(text))
    os.close(read)


def test_a_line_that_is_longer_than_the_pipe_goes_out_in_pieces_as_it_is_read(writes):
    text = "x" * 200_000 + "\n"
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream:
        reader = threading.Thread(target=empty, args=(read, len(text)), daemon=True)
        reader.start()
        assert put(LogStream(), stream, text) == [True]
        reader.join(20)
        assert not reader.is_alive() and len(writes) > 1 and sum(writes) == len(text)
    os.close(read)
