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
from itertools import zip_longest
from pathlib import Path

import anyio

from asyncdicom.association.handshake import shake_hands
from asyncdicom.association.tls_profile import apply_profile
from asyncdicom.errors import ConfigurationError, ConnectRefused, ConnectTimeout, ResolveFailed, TLSFailed
from asyncdicom.modality import TLS, Modality
from asyncdicom.outcome import Phases

# getaddrinfo cannot be interrupted, so a resolver that hangs keeps its thread. These are its own: it starves nobody else.
_RESOLVERS = 16

# After an A-ABORT, what the peer has in flight is read and forgotten so long, in seconds.
LINGER = 0.25

# How long an address may keep silent before the next one is tried, too, in seconds (RFC 8305 section 5).
_STAGGER = 0.25

# The addresses of a host: family and socket address.
Address = tuple[str, int] | tuple[str, int, int, int]
Addresses = list[tuple[socket.AddressFamily, Address]]


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


def tls_failure(who: object, error: OSError) -> TLSFailed:
    """What a handshake that failed is to the caller.

    :param who: the modality, as it is to be named
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return TLSFailed(f"{who}: {error.verify_message}")
    reason = getattr(error, "reason", None)
    if is_alert(error):
        return TLSFailed(f"{who}: the peer does not go on: {str(reason).lower()}")
    return TLSFailed(f"{who}: {reason or error}")


def is_alert(error: BaseException | None) -> bool:
    """Whether an error is that the peer ended TLS, and said why (RFC 8446 section 6.2). In TLS 1.3 that may come after the
    handshake: it looks at our certificate when we are through already."""
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")


async def _resolve(modality: Modality, phases: Phases) -> Addresses:
    started = time.monotonic()
    literal = _literal(modality.host, modality.port)
    if literal is not None:
        phases.resolve = time.monotonic() - started
        return literal
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
    return _interleaved([(socket.AddressFamily(family), address) for family, _, _, _, address in found])  # type: ignore[misc]


@functools.lru_cache(maxsize=8192)
def _literal(host: str, port: int) -> Addresses | None:
    """The address that a host is written as; None when it is a name."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if address.version == 4:
        return [(socket.AF_INET, (str(address), port))]
    return [(socket.AF_INET6, (str(address), port, 0, 0))]


def _interleaved(addresses: Addresses) -> Addresses:
    """The families in turn, the first one first (RFC 8305 section 4): one that is dead delays by one attempt only."""
    first = [address for address in addresses if address[0] == addresses[0][0]]
    others = [address for address in addresses if address[0] != addresses[0][0]]
    return [address for pair in zip_longest(first, others) for address in pair if address is not None]


async def _connect(modality: Modality, addresses: Addresses, phases: Phases) -> socket.socket:
    started = time.monotonic()
    try:
        deadline = started + modality.timeouts.connect
        if len(addresses) == 1:
            return await _attempt(*addresses[0], deadline)
        return await _race(addresses, deadline)
    except TimeoutError:
        raise ConnectTimeout(f"{modality}: no answer in {modality.timeouts.connect:g} s") from None
    except OSError as error:
        if error.errno in _UNREACHABLE:
            raise ConnectTimeout(f"{modality}: {os.strerror(error.errno)}") from error
        raise ConnectRefused(f"{modality}: {os.strerror(error.errno) if error.errno else error}") from error
    finally:
        phases.connect = time.monotonic() - started


async def _race(addresses: Addresses, deadline: float) -> socket.socket:
    """Try addresses one after the other, each a little after the one before it; the first that answers wins (RFC 8305).

    :raises OSError: when none does; a refusal says more than a silence
    """
    won: list[socket.socket] = []
    failed: list[OSError] = []

    async def attempt(family: socket.AddressFamily, address: Address, over: anyio.Event) -> None:
        try:
            sock = await _attempt(family, address, deadline)
        except OSError as error:
            failed.append(error)
            over.set()
            return
        if won:
            sock.close()
            return
        won.append(sock)
        tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            for family, address in addresses:
                over = anyio.Event()
                tasks.start_soon(attempt, family, address, over)
                # One that fails at once lets the next begin at once.
                with anyio.move_on_after(_STAGGER):
                    await over.wait()
    except BaseException:
        for sock in won:
            sock.close()
        raise
    if won:
        return won[0]
    # TimeoutError is an OSError without a number.
    raise next((error for error in failed if error.errno and error.errno not in _UNREACHABLE), failed[-1])


async def _attempt(family: socket.AddressFamily, address: Address, deadline: float) -> socket.socket:
    """Connect to one address.

    :raises TimeoutError: when nobody answers in time
    :raises OSError: when it fails
    """
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        error = sock.connect_ex(address)
        if error in _UNDER_WAY:
            # On the same machine it takes no time, and waiting for it would.
            error = sock.connect_ex(address)
        if error == errno.EISCONN:
            return sock
        if error in _UNDER_WAY:
            await _writable(sock, deadline)
            error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, os.strerror(error))
    except BaseException:
        sock.close()
        raise
    return sock


_UNDER_WAY = {errno.EINPROGRESS, errno.EALREADY, errno.EINTR}


async def _writable(sock: socket.socket, deadline: float) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[bool] = loop.create_future()

    def settle(value: bool) -> None:
        if not ready.done():
            ready.set_result(value)

    descriptor = sock.fileno()
    loop.add_writer(descriptor, settle, True)
    timer = loop.call_later(max(0.0, deadline - time.monotonic()), settle, False)
    try:
        if not await ready:
            raise TimeoutError
    finally:
        timer.cancel()
        loop.remove_writer(descriptor)


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
        apply_profile(context)
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
