"""A TCP connection without TLS, straight on the loop's readiness callbacks.

A sweep opens and closes a connection for every C-ECHO. asyncio's own transport costs several turns of the loop and a future for
making one and as many for closing it, which is as much as all the rest of an association; this one is there when it is made
and gone when it is closed. With TLS asyncio's transports are used.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

_READ = 256 << 10
# Bytes that wait to be sent: above the first the protocol is asked to pause, below the second to go on.
_HIGH = 64 << 10
_LOW = 16 << 10


class PlainTransport(asyncio.Transport):
    """A connected socket under a protocol.

    It differs from asyncio's in that :meth:`close` and :meth:`abort` call ``connection_lost`` before they return.

    :param sock: connected and non-blocking; this object's from now on
    """

    def __init__(self, sock: socket.socket, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._fd = sock.fileno()
        self._protocol = protocol
        self._buffer = bytearray()
        self._is_closing = False
        self._is_gone = False
        self._is_reading = True
        self._eof_asked = False
        self._is_full = False
        protocol.connection_made(self)
        self._loop.add_reader(self._fd, self._read)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What is known of the connection: ``socket`` and ``peername``."""
        if name == "socket":
            return self._sock
        if name == "peername":
            return self._sock.getpeername()
        return default

    # -- reading ------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            data = self._sock.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        try:
            if data:
                self._protocol.data_received(data)
            elif not self._protocol.eof_received():
                self.close()
            else:
                self.pause_reading()
        except Exception as error:
            # As asyncio does it: a fault of the protocol costs its connection, and is reported.
            self._loop.call_exception_handler({"message": "a protocol failed", "exception": error, "transport": self})
            self._lose(error)

    def pause_reading(self) -> None:
        """Read nothing until told otherwise."""
        if self._is_reading and not self._is_gone:
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def resume_reading(self) -> None:
        """Read on."""
        if not self._is_reading and not self._is_closing:
            self._is_reading = True
            self._loop.add_reader(self._fd, self._read)

    def is_reading(self) -> bool:
        """Whether it reads."""
        return self._is_reading and not self._is_closing

    # -- writing ------------------------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes, now or when the peer has read enough; after the close they are lost."""
        if self._is_closing or self._eof_asked or not len(data):
            return
        if not self._buffer:
            try:
                sent = self._sock.send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError as error:
                self._lose_soon(error)
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
            self._loop.add_writer(self._fd, self._write)
        self._buffer += data
        if len(self._buffer) > _HIGH and not self._is_full:
            self._is_full = True
            self._protocol.pause_writing()

    def _write(self) -> None:
        try:
            sent = self._sock.send(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._lose(error)
            return
        del self._buffer[:sent]
        if self._is_full and len(self._buffer) <= _LOW:
            self._is_full = False
            self._protocol.resume_writing()
        if self._buffer:
            return
        self._loop.remove_writer(self._fd)
        if self._is_closing:
            self._lose(None)
        elif self._eof_asked:
            self._shut_down()

    def can_write_eof(self) -> bool:
        """It can."""
        return True

    def write_eof(self) -> None:
        """Half-close, once everything is sent."""
        if not self._eof_asked and not self._is_closing:
            self._eof_asked = True
            if not self._buffer:
                self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            # The peer has reset the connection, and nobody has noticed yet.
            self._lose_soon(error)

    # -- ending -------------------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Whether it is closed, or about to be."""
        return self._is_closing

    def close(self) -> None:
        """Close, once everything is sent."""
        if self._is_closing:
            return
        self._is_closing = True
        if not self._buffer:
            self._lose(None)
        elif self._is_reading:
            self._is_reading = False
            self._loop.remove_reader(self._fd)

    def abort(self) -> None:
        """Close now."""
        self._lose(None)

    def _lose_soon(self, error: OSError) -> None:
        # Whoever writes does not expect to be told of the end from within.
        self._is_closing = True
        self._buffer.clear()
        self._loop.call_soon(self._lose, error)

    def _lose(self, error: Exception | None) -> None:
        if self._is_gone:
            return
        self._is_gone = self._is_closing = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        self._buffer.clear()
        self._sock.close()
        self._protocol.connection_lost(error)
