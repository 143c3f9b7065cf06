"""sd_notify: what systemd wants to hear from a service of Type=notify (SPEC O7).

A datagram to NOTIFY_SOCKET per message; a socket name that begins with @ is abstract. Without the variable,
or when the manager does not listen, nothing happens: a worker never depends on it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager named in `environ`; `failures` counts messages that could not be sent."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        meant = environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        usec = environ.get("WATCHDOG_USEC", "") if meant else ""
        #: Seconds within which WATCHDOG=1 must come; 0 = no watchdog.
        self.watchdog_seconds = int(usec) / 1e6 if usec.isdecimal() else 0.0
        self.failures = 0

    @property
    def enabled(self) -> bool:
        return bool(self._address)

    def send(self, *assignments: str) -> bool:
        """Send `NAME=value` lines as one message; True when it went out."""
        if not self._address:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.setblocking(False)  # a manager that does not read must not stop us
                connection.sendto("\n".join(assignments).encode(), self._address)
        except OSError:
            self.failures += 1
            return False
        return True

    def reloading(self) -> bool:
        """A reload begins; READY=1 ends it (Type=notify-reload)."""
        return self.send(
            "RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
        )
