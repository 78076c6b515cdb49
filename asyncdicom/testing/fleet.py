"""Many simulated modalities in one process, on addresses of 127.0.0.0/8."""

from __future__ import annotations

import asyncio
import csv
import io
import ipaddress
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality
from asyncdicom.testing.behaviour import Behaviour, Fault, assign
from asyncdicom.testing.certificates import Certificates
from asyncdicom.testing.simulated import SimulatedModality
from asyncdicom.testing.sockets import allow_descriptors

# A listener and a few connections each.
_DESCRIPTORS_EACH = 4
_SPARE_DESCRIPTORS = 512
_PORT_ATTEMPTS = 20
_LOOPBACK = ipaddress.ip_network("127.0.0.0/8")


class SimulatedFleet:
    """A fleet that listens once entered; an async context manager.

    Modalities are named ``sim0001``, ``sim0002`` ... and called ``SIM0001`` ...; each is in the group ``simulated`` and in one
    named after its fault.

    :ivar modalities: the simulated modalities, in the order of their addresses
    """

    def __init__(self, modalities: list[SimulatedModality], port: int) -> None:
        self.modalities = tuple(modalities)
        self._port = port
        self._make_ports = port == 0

    @property
    def port(self) -> int:
        """The one port of all; 0 before it listens when none was asked for."""
        return self._port

    async def __aenter__(self) -> Self:
        allow_descriptors(_DESCRIPTORS_EACH * len(self.modalities) + _SPARE_DESCRIPTORS)
        attempts = _PORT_ATTEMPTS if self._make_ports else 1
        for attempt in range(1, attempts + 1):
            try:
                await self._open()
            except OSError:
                # The port that was free on the first address is taken on another: try another one.
                if attempt == attempts:
                    raise
                self._port = 0
            else:
                break
        return self

    async def _open(self) -> None:
        opened: list[SimulatedModality] = []
        try:
            for modality in self.modalities:
                modality.listen_on(self._port)
                await modality.__aenter__()
                opened.append(modality)
                self._port = modality.port
        except BaseException:
            for modality in opened:
                await modality.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        results = await asyncio.gather(
            *(modality.__aexit__(kind, error, traceback) for modality in self.modalities), return_exceptions=True
        )
        errors = [result for result in results if isinstance(result, BaseException)]
        if errors:
            raise BaseExceptionGroup("simulated modalities failed", errors)

    def inventory(self, **fields: Any) -> list[Modality]:
        """Return them all as what we know of peers.

        :param fields: further fields of each :class:`~asyncdicom.modality.Modality`
        """
        return [
            modality.modality(_name(index), groups=_groups(modality), **fields)
            for index, modality in enumerate(self.modalities)
        ]

    def inventory_csv(self) -> str:
        """Return the inventory as CSV: ``name,ae_title,host,port,groups``, groups separated by spaces.

        The format has no column for TLS: those that speak it are in the group ``tls`` or ``silent_tls``.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("name", "ae_title", "host", "port", "groups"))
        for known in self.inventory():
            writer.writerow((known.name, known.ae_title, known.host, known.port, " ".join(known.groups)))
        return text.getvalue()

    def with_fault(self, *faults: Fault) -> list[SimulatedModality]:
        """Return those that have one of these faults."""
        return [modality for modality in self.modalities if modality.behaviour.fault in faults]

    def __repr__(self) -> str:
        return f"<SimulatedFleet of {len(self.modalities)} on port {self.port}>"


def simulate(
    count: int,
    port: int = 0,
    faults: str = "",
    *,
    host: str = "127.64.0.1",
    seed: int = 0,
    tls: Certificates | None = None,
    settings: Callable[[int, Behaviour], dict[str, Any]] | None = None,
) -> SimulatedFleet:
    """Make a fleet of simulated modalities, each on an address of its own and all on one port.

    :param count: how many
    :param port: 0 for one that is free
    :param faults: how many have which fault, such as ``silent=5%,reject=2%,slow:0.5=10%``; the grammar stands in
        :mod:`asyncdicom.testing.behaviour`
    :param host: the first address; the others follow, leaving out those that end in 0 or 255
    :param seed: the same seed gives the same fault to the same modality
    :param tls: certificates for those that speak TLS
    :param settings: further parameters of :class:`SimulatedModality` by index from 0 and behaviour
    :raises ConfigurationError: when the specification is wrong, the addresses leave 127.0.0.0/8, or certificates are missing
    """
    behaviours = assign(count, faults, seed=seed)
    modalities = []
    for index, (behaviour, address) in enumerate(zip(behaviours, _addresses(host, count), strict=True)):
        fields = dict(settings(index, behaviour)) if settings is not None else {}
        if behaviour.fault in (Fault.TLS, Fault.SILENT_TLS):
            fields.setdefault("tls", tls)
        fields.setdefault("ae_title", _name(index).upper())
        modalities.append(SimulatedModality(behaviour, host=address, port=port, **fields))
    return SimulatedFleet(modalities, port)


def _addresses(host: str, count: int) -> list[str]:
    try:
        address = int(ipaddress.IPv4Address(host))
    except ValueError:
        raise ConfigurationError("host", host, "the first address of the fleet, in 127.0.0.0/8") from None
    found: list[str] = []
    while len(found) < count:
        if address & 0xFF not in (0x00, 0xFF):
            text = ipaddress.IPv4Address(address)
            if text not in _LOOPBACK:
                raise ConfigurationError("host", host, f"{count} modalities from there leave 127.0.0.0/8")
            found.append(str(text))
        address += 1
    return found


def _name(index: int) -> str:
    return f"sim{index + 1:04}"


def _groups(modality: SimulatedModality) -> tuple[str, ...]:
    return ("simulated", str(modality.behaviour.fault))
