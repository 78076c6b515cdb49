"""Simulated modalities, faults, synthetic instances, certificates, and a raw peer: for our tests and for users' own.

::

    from asyncdicom import associate
    from asyncdicom.testing import Fault, SimulatedModality

    async with SimulatedModality(Fault.HEALTHY, matches=[{"PatientID": "1"}]) as sim, associate(sim.modality()) as association:
        assert await association.echo() == 0x0000
    assert sim.echoes == sim.releases_received == 1

Everything runs on the event loop of the test, on loopback, and is gone when its context is left. A fleet of thousands::

    async with simulate(1_000, faults="silent=5%,reject=2%,slow:0.5=10%") as fleet:
        inventory = fleet.inventory()
"""

from asyncdicom.testing.behaviour import Behaviour, Fault, assign
from asyncdicom.testing.certificates import Certificates, certificates
from asyncdicom.testing.content import HeldInstance, Stored
from asyncdicom.testing.fleet import SimulatedFleet, simulate
from asyncdicom.testing.instances import synthetic_instance, synthetic_study, synthetic_uid
from asyncdicom.testing.simulated import SimulatedModality
from asyncdicom.testing.wire import Delivery, Wire, send_instances, sender

__all__ = [
    "Behaviour",
    "Certificates",
    "Delivery",
    "Fault",
    "HeldInstance",
    "SimulatedFleet",
    "SimulatedModality",
    "Stored",
    "Wire",
    "assign",
    "certificates",
    "send_instances",
    "sender",
    "simulate",
    "synthetic_instance",
    "synthetic_study",
    "synthetic_uid",
]
