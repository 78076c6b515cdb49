"""Certificates for tests."""

from __future__ import annotations

import ssl
import sys
from pathlib import Path

import pytest
from cryptography import x509

from asyncdicom.errors import ConfigurationError
from asyncdicom.testing import Certificates, Fault, SimulatedModality, certificates


@pytest.fixture(scope="module")
def issued(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates(tmp_path_factory.mktemp("issued"), client_name="MR7")


def read(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_keys_are_for_their_owner_alone(issued: Certificates) -> None:
    for key in (issued.key, issued.client_key, issued.expired_key, issued.foreign_key):
        assert key.stat().st_mode & 0o077 == 0


def test_who_signed_whom(issued: Certificates) -> None:
    ca, foreign = read(issued.ca), read(issued.foreign_ca)
    for path in (issued.certificate, issued.client_certificate, issued.expired_certificate):
        assert read(path).issuer == ca.subject
    assert read(issued.foreign_certificate).issuer == foreign.subject != ca.subject


def test_the_client_is_named_as_asked(issued: Certificates) -> None:
    (name,) = read(issued.client_certificate).subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    assert name.value == "MR7"


def test_the_expired_one_is_expired_and_the_others_are_not(issued: Certificates) -> None:
    expired, valid = read(issued.expired_certificate), read(issued.certificate)
    assert expired.not_valid_before_utc < expired.not_valid_after_utc < valid.not_valid_after_utc


def test_the_server_context_refuses_tls_before_1_2(issued: Certificates) -> None:
    assert issued.server_context().minimum_version == ssl.TLSVersion.TLSv1_2


def test_a_modality_that_speaks_tls_needs_certificates() -> None:
    with pytest.raises(ConfigurationError, match="certificates"):
        SimulatedModality(Fault.TLS)


def test_without_trustme_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    with pytest.raises(ConfigurationError, match=r"asyncdicom\[testing\]"):
        certificates(tmp_path)
