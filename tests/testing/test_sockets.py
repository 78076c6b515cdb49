"""Addresses and limits of simulated modalities, before anything listens."""

from __future__ import annotations

import resource

import pytest

from asyncdicom.errors import ConfigurationError
from asyncdicom.testing import simulate, sockets


def test_tls_without_certificates_is_a_configuration_error() -> None:
    with pytest.raises(ConfigurationError, match="certificates"):
        simulate(4, faults="tls=1")


@pytest.mark.parametrize("host", ["10.0.0.1", "nowhere", "127.255.255.250"])
def test_a_fleet_stays_on_loopback(host: str) -> None:
    with pytest.raises(ConfigurationError):
        simulate(10, host=host)


def test_the_limit_of_open_files_is_raised_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        sockets.allow_descriptors(1)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        sockets.allow_descriptors(512)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
