"""What systemd is told: ready, reloading, stopping, still alive (sd_notify(3), by hand: it is one datagram)."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

import anyio

logger = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager what the service does; without one it does nothing.

    :param environment: where the manager says how to reach it
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        address = environment.get("NOTIFY_SOCKET", "")
        # A leading @ stands for the NUL of an abstract socket (unix(7)).
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._period = _watchdog_period(environment)

    def ready(self, status: str) -> None:
        """The service works, or works again after a reload.

        :param status: one line for `systemctl status`
        """
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """A reload begins; :meth:`ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, seconds: float) -> None:
        """The service ends.

        :param seconds: how long it may take
        """
        self._send("STOPPING=1", "STATUS=draining", f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    async def keep_alive(self) -> None:
        """Tell until cancelled that the loop turns, twice as often as the manager wants to hear it."""
        while self._period is not None:
            self._send("WATCHDOG=1")
            await anyio.sleep(self._period / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                sock.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            logger.warning("the service manager cannot be told", extra={"what": lines[0], "reason": error.strerror})


def _watchdog_period(environment: Mapping[str, str]) -> float | None:
    """Seconds within which the manager wants to hear of us; None when it does not."""
    period, process = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not period.isdigit() or int(period) == 0 or (process and process != str(os.getpid())):
        return None
    return int(period) / 1_000_000
