"""Connecting: the addresses of a host are raced, each a little after the one before it, and the losers are closed."""

from __future__ import annotations

import errno
import socket
import time

import anyio
import pytest

from asyncdicom.association import transport
from asyncdicom.association.transport import Addresses
from asyncdicom.errors import ConnectRefused, ConnectTimeout
from asyncdicom.modality import Modality, Timeouts
from asyncdicom.outcome import Phases

V4, V6 = socket.AF_INET, socket.AF_INET6


class Listener:
    """Listens on a loopback address; one that is full keeps further peers waiting."""

    def __init__(self, host: str, *, full: bool = False) -> None:
        self.socket = socket.create_server((host, 0), backlog=0)
        self.address = self.socket.getsockname()[:2]
        self._fillers: list[socket.socket] = []
        if full:
            for _ in range(4):
                filler = socket.socket()
                filler.setblocking(False)
                assert filler.connect_ex(self.address) in (0, errno.EINPROGRESS)
                self._fillers.append(filler)

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        for filler in self._fillers:
            filler.close()
        self.socket.close()


def free_address() -> tuple[str, int]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address: tuple[str, int] = probe.getsockname()
        return address


def modality(connect: float = 3.0) -> Modality:
    return Modality("m", "AET", "name", 1, timeouts=Timeouts(connect=connect))


async def connected_to(addresses: Addresses, connect: float = 3.0) -> tuple[str, int]:
    with await transport._connect(modality(connect), addresses, Phases()) as sock:
        peer: tuple[str, int] = sock.getpeername()[:2]
        return peer


def test_the_families_take_turns_the_first_one_first() -> None:
    found: Addresses = [(V6, ("a", 1, 0, 0)), (V6, ("b", 1, 0, 0)), (V6, ("c", 1, 0, 0)), (V4, ("d", 1)), (V4, ("e", 1))]
    assert [address[0] for _, address in transport._interleaved(found)] == ["a", "d", "b", "e", "c"]


async def test_a_silent_address_delays_by_a_moment_only(no_leaks: object) -> None:
    with Listener("127.0.0.1", full=True) as silent, Listener("127.0.0.1") as good:
        started = time.monotonic()
        assert await connected_to([(V4, silent.address), (V4, good.address)]) == good.address
        assert 0.2 < time.monotonic() - started < 1.0


async def test_a_refusing_address_does_not_delay(no_leaks: object) -> None:
    with Listener("127.0.0.1") as good:
        started = time.monotonic()
        assert await connected_to([(V4, free_address()), (V4, good.address)]) == good.address
        assert time.monotonic() - started < 0.2


async def test_a_refusal_says_more_than_a_silence(no_leaks: object) -> None:
    with Listener("127.0.0.1", full=True) as silent, pytest.raises(ConnectRefused):
        await connected_to([(V4, silent.address), (V4, free_address())], connect=0.6)


async def test_silence_everywhere_is_a_timeout_by_the_deadline(no_leaks: object) -> None:
    with Listener("127.0.0.1", full=True) as one, Listener("127.0.0.1", full=True) as other:
        started = time.monotonic()
        with pytest.raises(ConnectTimeout):
            await connected_to([(V4, one.address), (V4, other.address)], connect=0.6)
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("delay", [0.0, 0.01, 0.26, 0.3])
async def test_cancelling_a_race_leaves_no_descriptor(no_leaks: object, delay: float) -> None:
    with Listener("127.0.0.1", full=True) as one, Listener("127.0.0.1", full=True) as other:
        with anyio.move_on_after(delay) as scope:
            await connected_to([(V4, one.address), (V4, other.address)])
        assert scope.cancelled_caught
