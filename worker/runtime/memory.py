"""How much memory this process takes, for recycling (SPEC W7), and how often it looks for garbage."""

from __future__ import annotations

import gc
import resource

#: Objects that come to be before the cyclic collector walks the young ones; and so often that before it walks
#: the older ones.
COLLECT_AFTER = (20_000, 20, 50)
#: CPython's, up to 3.11 and after.
USUAL = ((700, 10, 10), (2000, 10, 0), (2000, 10, 10))


def collect_seldom() -> None:
    """For processes with coroutines: thousands that wait are objects which the cyclic collector would walk
    again and again.

    5,000 that await a second reach 0.905 of the ideal instead of 0.865, 400 that await 50 ms 0.94 instead of
    0.91 (two alternations of METRICS=waiting); handlers that do nothing are neither faster nor slower. An
    application that has set thresholds of its own keeps them.
    """
    gc.collect()
    gc.freeze()  # modules and actors: they stay
    if gc.get_threshold() in USUAL:
        gc.set_threshold(*COLLECT_AFTER)


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1_048_576
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
