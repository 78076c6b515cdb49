"""From a modality to a connected socket: resolve, connect, TLS; each with its deadline, each timed apart. And the parting."""

from __future__ import annotations

import asyncio
import errno
import functools
import ipaddress
import os
import socket
import ssl
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio

from asyncdicom.errors import ConfigurationError, ConnectRefused, ConnectTimeout, ResolveFailed, TLSFailed
from asyncdicom.modality import TLS, Modality
from asyncdicom.outcome import Phases

# getaddrinfo cannot be interrupted, so a resolver that hangs keeps its thread. These are its own: it starves nobody else.
_RESOLVERS = 16

# After an A-ABORT, what the peer has in flight is read and forgotten so long, in seconds.
LINGER = 0.25

# The addresses of a host: family and socket address.
Addresses = list[tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]]


@functools.cache
def _resolver() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_RESOLVERS, thread_name_prefix="asyncdicom-resolve")


async def connect(modality: Modality, phases: Phases) -> socket.socket:
    """Connect to a modality.

    :param phases: receives the seconds of resolve, connect and tls, also of one that failed
    :return: a connected, non-blocking socket, with TLS established where the modality wants it; the caller closes it
    :raises ResolveFailed: the name has no address
    :raises ConnectRefused: nothing listens
    :raises ConnectTimeout: no answer in time, or no route
    :raises TLSFailed: the handshake failed
    """
    sock = await dial(modality, phases)
    if modality.tls is None:
        return sock
    try:
        return await _secure(modality, modality.tls, sock, phases)
    except BaseException:
        sock.close()
        raise


async def dial(modality: Modality, phases: Phases) -> socket.socket:
    """Resolve and connect to a modality, without TLS.

    :param phases: receives the seconds of resolve and connect, also of one that failed
    :return: a connected, non-blocking socket; the caller closes it
    :raises OperationError: as :func:`connect`
    """
    return await _connect(modality, await _resolve(modality, phases), phases)


def tls_failure(modality: Modality, error: OSError) -> TLSFailed:
    """What a handshake that failed is to the caller."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSFailed(f"{modality}: {error.verify_message}")
    return TLSFailed(f"{modality}: {getattr(error, 'reason', None) or error}")


async def _resolve(modality: Modality, phases: Phases) -> Addresses:
    started = time.monotonic()
    try:
        address = ipaddress.ip_address(modality.host)
    except ValueError:
        pass
    else:
        phases.resolve = time.monotonic() - started
        if address.version == 4:
            return [(socket.AF_INET, (str(address), modality.port))]
        return [(socket.AF_INET6, (str(address), modality.port, 0, 0))]
    try:
        with anyio.fail_after(modality.timeouts.resolve):
            found = await asyncio.get_running_loop().run_in_executor(
                _resolver(), functools.partial(socket.getaddrinfo, modality.host, modality.port, type=socket.SOCK_STREAM)
            )
    except TimeoutError:
        raise ResolveFailed(f"{modality.host}: the resolver did not answer in {modality.timeouts.resolve:g} s") from None
    except (OSError, UnicodeError) as error:
        raise ResolveFailed(f"{modality.host}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        phases.resolve = time.monotonic() - started
    return [(socket.AddressFamily(family), address) for family, _, _, _, address in found]  # type: ignore[misc]


async def _connect(modality: Modality, addresses: Addresses, phases: Phases) -> socket.socket:
    started = time.monotonic()
    loop = asyncio.get_running_loop()
    deadline = started + modality.timeouts.connect
    refused: OSError | None = None
    try:
        for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
            sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
            try:
                # Each address gets its share of what is left, so that one that is dead does not use up all of it.
                with anyio.fail_after((deadline - time.monotonic()) / left):
                    await loop.sock_connect(sock, address)
            except TimeoutError:
                sock.close()
            except OSError as error:
                sock.close()
                if error.errno not in _UNREACHABLE:
                    refused = error
            except BaseException:
                sock.close()
                raise
            else:
                return sock
    finally:
        phases.connect = time.monotonic() - started
    if refused is not None:
        raise ConnectRefused(f"{modality}: {os.strerror(refused.errno) if refused.errno else refused}") from refused
    raise ConnectTimeout(f"{modality}: no answer in {modality.timeouts.connect:g} s")


# The network's way of saying that nobody answers there.
_UNREACHABLE = {errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


async def _secure(modality: Modality, tls: TLS, sock: socket.socket, phases: Phases) -> ssl.SSLSocket:
    started = time.monotonic()
    limit = modality.timeouts.connect
    try:
        loop = asyncio.get_running_loop()
        context = await loop.run_in_executor(_resolver(), client_context, tls)
        secured = context.wrap_socket(sock, server_hostname=tls.server_name or modality.host, do_handshake_on_connect=False)
        try:
            with anyio.fail_after(limit):
                await shake_hands(secured)
        except BaseException:
            secured.close()
            raise
    except TimeoutError:
        raise TLSFailed(f"{modality}: no TLS handshake in {limit:g} s; does the peer speak TLS?") from None
    except OSError as error:
        raise tls_failure(modality, error) from error
    finally:
        phases.tls = time.monotonic() - started
    return secured


async def shake_hands(sock: ssl.SSLSocket) -> None:
    """Do the TLS handshake of a non-blocking socket on the loop; the caller sets the deadline."""
    while True:
        try:
            sock.do_handshake()
        except ssl.SSLWantReadError:
            await anyio.wait_readable(sock)
        except ssl.SSLWantWriteError:
            await anyio.wait_writable(sock)
        else:
            return


def client_context(tls: TLS) -> ssl.SSLContext:
    """Make the TLS context for a peer. Reads files: call it off the loop.

    :raises ConfigurationError: when a file is missing or is not what it should be
    """
    stamps = tuple(_stamp(path) for path in (tls.ca, tls.certificate, tls.key))
    return _client_context(tls, stamps)


def _stamp(path: Path | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError as error:
        raise ConfigurationError("tls", str(path), f"cannot be read: {error.strerror}") from error
    return status.st_mtime_ns, status.st_size


@functools.lru_cache(maxsize=256)
def _client_context(tls: TLS, _stamps: tuple[tuple[int, int] | None, ...]) -> ssl.SSLContext:
    # The stamps are part of the key, so that a renewed certificate is taken without a restart.
    try:
        context = ssl.create_default_context(cafile=tls.ca)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if tls.certificate is not None:
            context.load_cert_chain(tls.certificate, tls.key)
    except (ssl.SSLError, OSError) as error:
        raise ConfigurationError("tls", str(tls.ca or tls.certificate), f"not usable: {error}") from error
    return context


def part_with(transport: asyncio.Transport, last: bytes) -> None:
    """Say a last PDU and close, so that the peer gets to see it: closing on unread bytes sends a reset, which overtakes it.

    The connection is half-closed, and gone after a quarter of a second at the latest; what still comes is for the protocol to
    forget.
    """
    if transport.is_closing():
        return
    transport.write(last)
    transport.resume_reading()
    try:
        if not transport.can_write_eof():
            transport.close()
            return
        transport.write_eof()
    except OSError:
        # The peer has reset the connection, and the loop has not told us yet.
        transport.abort()
        return
    asyncio.get_running_loop().call_later(LINGER, transport.abort)
