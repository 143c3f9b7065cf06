"""A stop is asked for in a signal handler, in processes of any size."""

from __future__ import annotations

import os
import resource

import pytest

from packhorse.worker.runtime.stopping import StopRequest


@pytest.fixture
def a_thousand_descriptors():
    """Of a process with as many connections: the next one has a number beyond what select() knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2048:
        pytest.skip("this machine allows no 2,048 descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    yield
    for descriptor in held:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_is_heard_in_a_process_with_thousands_of_descriptors(a_thousand_descriptors):
    request = StopRequest()
    assert request.wait(0.0) is False
    request.ask()
    assert request.wait(10) is True


def test_it_gives_its_descriptors_back():
    before = set(os.listdir("/proc/self/fd"))
    for _ in range(10):
        StopRequest()
    assert set(os.listdir("/proc/self/fd")) <= before
