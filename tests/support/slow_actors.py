"""Actors whose module takes a while to import."""

import time

print("importing", flush=True)
time.sleep(2)  # what a large application does here: signals that arrive meanwhile must not be lost

from tests.support.actors import effect  # noqa: E402, F401
