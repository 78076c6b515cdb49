"""What is said in the log of those who are turned away: why, and what to do about it."""

from __future__ import annotations

import logging
import time

logger = logging.getLogger(__name__)

# The same peer for the same reason is a warning once in so many seconds; what comes between is said to who wants details.
_EVERY = 10.0
_MOST = 1_024

_HINTS = {
    "calling_ae_title": "no [[scp.allow]] has this AE title from this address, or scp.tls.bind gives it to other certificates",
    "operations": "it is let in, but not with all that it asks for: [[scp.allow]] operations says what it may do",
    "called_ae_title": "it calls us by another AE title, and scp.require_called_ae_title is set: correct it there",
    "network": "no [[scp.allow]] has this address",
    "limit": "too many at once: see who holds them, or raise scp.max_associations",
    "draining": "the service ends; it may come again",
    "user_identity": "its user identity is missing or not believed: see scp.user_identity, and what the peer is set to send",
    "tls": "the TLS handshake failed",
    "protocol_version": "it asks in a version of the protocol that does not exist: what is at this address?",
    "artim": "it asked for no association within scp.artim_timeout: a port scan, a monitor, or half of a firewall rule",
}


class Refusals:
    """Says who is turned away, and no more often than somebody can read."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, str], float] = {}

    def tell(self, reason: str, calling_ae_title: str, address: str, detail: str = "") -> None:
        """Log that a peer is turned away.

        Called from any thread.

        :param reason: as for :class:`asyncdicom.observe.Observer`; or ``operations``, for who is let in for less than it wants
        :param calling_ae_title: as it wrote it; empty when it did not get so far
        :param detail: what is known besides the reason
        """
        now = time.monotonic()
        is_new = now - self._said.get((reason, address), -_EVERY) >= _EVERY
        if is_new:
            if len(self._said) >= _MOST:
                self._said.clear()
            self._said[reason, address] = now
        who = f"{calling_ae_title!a} at {address}" if calling_ae_title else address
        logger.log(
            logging.WARNING if is_new else logging.DEBUG, "turned away (%s): %s: %s", reason, who, detail or _HINTS[reason]
        )
