"""TLS handshakes on the loop, and those that fail: the peer gets to read the alert that says why (RFC 8446 section 6.2).

asyncio closes a connection whose handshake fails before it has written what OpenSSL had to say, and a connection that is closed
on unread bytes is reset, which overtakes what was written. Whoever looks after the other side then has no more than "connection
lost" to go by.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

import anyio

# So long, in seconds, a peer has to read why it is refused; and so much of what it still says is listened to, in readings.
_TO_BE_READ = 0.25
_READINGS = 8


class Refusal:
    """What this side found wrong with the handshake of one connection.

    :param sock: connected
    :ivar error: what it was; None as long as there is nothing
    """

    def __init__(self, sock: socket.socket) -> None:
        self.error: ssl.SSLError | None = None
        self._sock = sock

    def begin(self, error: ssl.SSLError) -> None:
        """Half-close the connection once the alert is written, and be deaf to it after a while."""
        self.error = error
        loop = asyncio.get_running_loop()
        loop.call_soon(self._shut, socket.SHUT_WR)
        loop.call_later(_TO_BE_READ, self._shut, socket.SHUT_RD)

    def _shut(self, how: int) -> None:
        # It may be closed by then.
        with suppress(OSError):
            self._sock.shutdown(how)


# asyncio makes the object that shakes hands by itself, out of reach: both know the connection by the context that they run in.
_current: ContextVar[Refusal | None] = ContextVar("refusal", default=None)


@contextmanager
def telling(refusal: Refusal) -> Iterator[None]:
    """Have the handshake that asyncio does within the block tell the peer why it fails.

    The error that asyncio raises is that of the connection's end; what it came of is :attr:`Refusal.error`.
    """
    token = _current.set(refusal)
    try:
        yield
    finally:
        _current.reset(token)


class TellingObject(ssl.SSLObject):
    """What shakes hands for asyncio: :attr:`ssl.SSLContext.sslobject_class` of a context.

    A handshake that fails looks like one that waits for the peer, for which asyncio writes what is to be written.
    """

    _readings = 0

    def do_handshake(self) -> None:
        """Shake hands.

        :raises ssl.SSLError: when it fails, or has to wait
        """
        refusal = _current.get()
        if refusal is None:
            super().do_handshake()
            return
        if refusal.error is None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                refusal.begin(error)
            else:
                return
        self._readings += 1
        if self._readings > _READINGS and refusal.error is not None:
            raise refusal.error
        raise ssl.SSLWantReadError(ssl.SSL_ERROR_WANT_READ, "the peer reads why it is refused")


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Do the TLS handshake of a non-blocking socket on the loop; the caller sets the deadline.

    :raises ssl.SSLError: when it fails; the peer had time to read why
    :raises OSError: when the connection ends
    """
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await anyio.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await anyio.wait_writable(sock)
        except ssl.SSLError:
            await _be_read(sock)
            raise
        else:
            return


async def _be_read(sock: ssl.SSLSocket) -> None:
    with suppress(OSError), anyio.move_on_after(_TO_BE_READ):
        # From here on it is a plain socket.
        sock.shutdown(socket.SHUT_WR)
        for _ in range(_READINGS):
            await anyio.wait_readable(sock)
            if not sock.recv(1 << 16):
                return
