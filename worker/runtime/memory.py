"""How much memory this process takes, for recycling (SPEC W7)."""

from __future__ import annotations

import resource


def resident_mib() -> float:
    """Resident memory of this process in MiB."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * resource.getpagesize() / 1_048_576
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
