"""Who may in by certificate (bar S8), by which TLS (PS3.15 Annex B, BCP 195), and certificates that are renewed meanwhile."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from cryptography.hazmat.primitives import serialization

from asyncdicom import (
    TLS,
    AssociationRejected,
    ConfigurationError,
    Modality,
    OperationError,
    Received,
    ServerTLS,
    StorageSCP,
    TLSFailed,
    associate,
)
from asyncdicom.modality import Engine
from asyncdicom.scp import certificates as module
from asyncdicom.testing import Wire
from tests.peers import dcmtk
from tests.peers.certificates import Certificates, Identity
from tests.peers.peer import Address
from tests.scp.conftest import Seen

pytestmark = pytest.mark.blocking


async def accept(received: Received) -> int:
    return 0x0000


def server_tls(certificates: Certificates, **settings: object) -> ServerTLS:
    return ServerTLS(certificates.server.certificate, certificates.server.key, **settings)  # type: ignore[arg-type]


def client(certificates: Certificates, identity: Identity | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates.ca)
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    return context


async def echo(port: int, context: ssl.SSLContext, calling_ae_title: str = "CT1") -> None:
    async with await Wire.connect("127.0.0.1", port, ssl=context) as wire:
        await wire.associate(calling_ae_title=calling_ae_title)
        assert await wire.echo() == 0x0000
        assert await wire.release()


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The warnings of the storage SCP, filled at the end of the test's own block."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.levelno >= logging.WARNING:
                said.append(record.getMessage())

    handler = Handler()
    logging.getLogger("asyncdicom.scp").addHandler(handler)
    yield said
    logging.getLogger("asyncdicom.scp").removeHandler(handler)


# -- which TLS --------------------------------------------------------------------------------------------------------


def hello(version: int) -> bytes:
    """A ClientHello of a TLS below 1.2 (RFC 4346 section 7.4.1.2), which OpenSSL itself may not be able to speak any more."""
    suites = struct.pack(">5H", 0xC013, 0xC014, 0x002F, 0x0035, 0x000A)
    body = struct.pack(">H32sBH", version, b"r" * 32, 0, len(suites)) + suites + b"\1\0"
    handshake = b"\1" + len(body).to_bytes(3, "big") + body
    return struct.pack(">BHH", 22, 0x0301, len(handshake)) + handshake


@pytest.mark.parametrize("version", [0x0300, 0x0301, 0x0302], ids=["SSL 3.0", "TLS 1.0", "TLS 1.1"])
async def test_tls_below_1_2_is_refused(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, warnings_of: list[str], version: int
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates), observer=seen) as scp:
        reader, writer = await asyncio.open_connection("127.0.0.1", scp.port)
        writer.write(hello(version))
        async with asyncio.timeout(3):
            answered = await reader.read()
        writer.close()
        await seen.turned_away("tls")
    # Nothing, or an alert; no ServerHello.
    assert answered[:1] in (b"", b"\x15")
    assert seen.rejected == {"tls": 1}
    assert "update it" in warnings_of[0]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_from_1_2_on_is_spoken_with_forward_secrecy_and_authenticated_encryption(
    no_leaks: object, engine: Engine, certificates: Certificates, version: ssl.TLSVersion
) -> None:
    context = client(certificates)
    context.minimum_version = context.maximum_version = version
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates)) as scp:
        await echo(scp.port, context)


@pytest.mark.parametrize("suites", ["AES128-SHA", "AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA256", "DHE-RSA-AES128-GCM-SHA256"])
async def test_other_cipher_suites_are_refused(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, warnings_of: list[str], suites: str
) -> None:
    context = client(certificates)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates), observer=seen) as scp:
        with pytest.raises((OSError, OperationError)):
            await echo(scp.port, context)
        await seen.turned_away("tls")
    assert "BCP 195" in warnings_of[0]


@pytest.mark.parametrize("suites", ["ECDHE-RSA-AES128-SHA256", "AES128-GCM-SHA256", "ECDHE-RSA-AES128-GCM-SHA256"])
async def test_we_ask_for_the_same_profile(no_leaks: object, engine: Engine, certificates: Certificates, suites: str) -> None:
    """A peer that speaks TLS 1.2 with one suite alone."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server.certificate, certificates.server.key)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(suites)

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        modality = Modality("peer", "ANY-SCP", "127.0.0.1", port, tls=TLS(ca=certificates.ca))
        with pytest.raises(OperationError) as caught:
            async with associate(modality, engine=engine):
                pass
    assert isinstance(caught.value, TLSFailed) is ("ECDHE" not in suites or "GCM" not in suites)


async def test_who_does_not_speak_tls_is_told_so_in_the_log(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, warnings_of: list[str]
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates), observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            with pytest.raises(OperationError):
                await wire.associate()
        await seen.turned_away("tls")
    assert len(warnings_of) == 1
    assert "does not speak TLS" in warnings_of[0]


# -- whose certificate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize(
    ("which", "said"),
    [(None, "shows no certificate"), ("expired", "certificate has expired"), ("foreign", "is not accepted")],
)
async def test_without_a_certificate_that_holds_nobody_gets_to_say_a_pdu(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, warnings_of: list[str],
    version: ssl.TLSVersion, which: str | None, said: str,
) -> None:  # fmt: skip
    context = client(certificates, getattr(certificates, which) if which else None)
    context.minimum_version = context.maximum_version = version
    tls = server_tls(certificates, client_ca=certificates.ca)
    async with StorageSCP(accept, port=0, engine=engine, tls=tls, observer=seen) as scp:
        with pytest.raises((OSError, OperationError)):
            await echo(scp.port, context)
        await seen.turned_away("tls")
        await echo(scp.port, client(certificates, certificates.client))
    assert seen.accepted == 1
    assert seen.rejected == {"tls": 1}
    assert said in warnings_of[0]


def read_why(port: int, context: ssl.SSLContext, first: bytes) -> str:
    """Connect, begin to speak, and return what TLS says when it ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        with pytest.raises(ssl.SSLError) as caught, context.wrap_socket(plain, server_hostname="127.0.0.1") as sock:
            # In TLS 1.3 the client is through with the handshake before its certificate is looked at.
            sock.sendall(first)
            while sock.recv(1024):
                pass
    return caught.value.reason


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("which", [None, "expired", "foreign"])
async def test_who_is_refused_gets_to_read_why(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, version: ssl.TLSVersion, which: str | None
) -> None:
    context = client(certificates, getattr(certificates, which) if which else None)
    context.minimum_version = context.maximum_version = version
    tls = server_tls(certificates, client_ca=certificates.ca)
    async with StorageSCP(accept, port=0, engine=engine, tls=tls, observer=seen) as scp:
        for _ in range(5):
            started = time.monotonic()
            assert "ALERT" in await anyio.to_thread.run_sync(read_why, scp.port, context, bytes(100_000))
            assert time.monotonic() - started < 2
        await seen.turned_away("tls")
    assert seen.accepted == 0


async def test_who_goes_on_talking_after_a_refusal_is_cut_off(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates), observer=seen) as scp:
        _, writer = await asyncio.open_connection("127.0.0.1", scp.port)
        with pytest.raises(OSError), anyio.fail_after(5):
            while True:
                writer.write(b"no TLS at all\n" * 1_000)
                await writer.drain()
                await anyio.lowlevel.checkpoint()
        writer.close()
        await seen.turned_away("tls")


@pytest.mark.parametrize("asking", ["native", "pynetdicom"])
async def test_our_own_side_says_tls_failed_when_its_certificate_is_refused(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, asking: Engine
) -> None:
    tls = server_tls(certificates, client_ca=certificates.ca)
    async with StorageSCP(accept, port=0, engine=engine, tls=tls, observer=seen) as scp:
        for trusted in (
            TLS(ca=certificates.ca),
            TLS(certificates.ca, certificates.foreign.certificate, certificates.foreign.key),
        ):
            modality = Modality("peer", "ANY-SCP", "127.0.0.1", scp.port, tls=trusted)
            with pytest.raises(TLSFailed, match="does not go on"):
                async with associate(modality, engine=asking):
                    pass


@pytest.mark.parametrize("asking", ["native", "pynetdicom"])
async def test_the_log_says_that_our_own_certificate_is_not_trusted(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, warnings_of: list[str], asking: Engine
) -> None:
    async with StorageSCP(accept, port=0, engine=engine, tls=server_tls(certificates), observer=seen) as scp:
        modality = Modality("peer", "ANY-SCP", "127.0.0.1", scp.port, tls=TLS(certificates.foreign.ca))
        with pytest.raises(TLSFailed):
            async with associate(modality, engine=asking):
                pass
        await seen.turned_away("tls")
    assert "does it trust the authority of our certificate" in warnings_of[0]


@pytest.mark.parametrize("name", ["CT1", "ct1", "localhost", "LOCALHOST"])
async def test_a_certificate_is_bound_to_ae_titles_by_common_name_or_dns_name(
    no_leaks: object, engine: Engine, seen: Seen, certificates: Certificates, name: str
) -> None:
    """The client's subject is CT1, and its subjectAltName has localhost."""
    tls = server_tls(certificates, client_ca=certificates.ca, bind={"other": ("CT3",), name: ("CT1", "CT2")})
    context = client(certificates, certificates.client)
    async with StorageSCP(accept, port=0, engine=engine, tls=tls, observer=seen) as scp:
        await echo(scp.port, context, "CT1")
        await echo(scp.port, context, "CT2")
        with pytest.raises(AssociationRejected) as caught:
            await echo(scp.port, context, "CT3")
    assert (caught.value.result, caught.value.source, caught.value.diagnostic) == (1, 1, 3)
    assert seen.rejected == {"calling_ae_title": 1}


# -- renewed meanwhile ------------------------------------------------------------------------------------------------


def put(identity: Identity, folder: Path) -> ServerTLS:
    """Have a certificate and its key lie in a folder, each replaced at once."""
    for source, name in ((identity.certificate, "certificate"), (identity.key, "key")):
        shutil.copy(source, folder / f"{name}.new")
        (folder / f"{name}.new").replace(folder / name)
    return ServerTLS(folder / "certificate", folder / "key")


def trusting_anybody() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.peer("echoscu")
@pytest.mark.parametrize("how", ["by itself", "on request"])
async def test_a_certificate_that_expired_is_replaced_under_a_running_scp(
    no_leaks: object, engine: Engine, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0 if how == "by itself" else 3600.0)
    async with StorageSCP(accept, port=0, engine=engine, tls=put(certificates.expired, tmp_path)) as scp:
        command = dcmtk.echoscu(Address("ANY-SCP", scp.port), tls=certificates.client)
        async with await Wire.connect("127.0.0.1", scp.port, ssl=trusting_anybody()) as wire:
            await wire.associate()
            assert (await command.run_async()).returncode != 0
            put(certificates.server, tmp_path)
            if how == "on request":
                assert (await command.run_async()).returncode != 0
                await scp.renew_certificate()
            assert (await command.run_async()).returncode == 0
            # Who was there before goes on.
            assert await wire.echo() == 0x0000
            assert await wire.release()


@pytest.mark.parametrize("broken", ["another key", "half of it", "nothing"])
async def test_a_broken_certificate_is_logged_once_and_the_old_one_stays(
    no_leaks: object, engine: Engine, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    warnings_of: list[str], broken: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    async with StorageSCP(accept, port=0, engine=engine, tls=put(certificates.server, tmp_path)) as scp:
        await echo(scp.port, client(certificates))
        if broken == "another key":
            shutil.copy(certificates.client.key, tmp_path / "key")
        elif broken == "half of it":
            (tmp_path / "certificate").write_bytes(certificates.server.certificate.read_bytes()[:500])
        else:
            (tmp_path / "certificate").unlink()
        for _ in range(3):
            await echo(scp.port, client(certificates))
        assert warnings_of == ["the new certificate is not usable, and the old one stays"]
        # And when it is whole again, it is taken.
        put(certificates.foreign, tmp_path)
        with pytest.raises(ssl.SSLCertVerificationError):
            await echo(scp.port, client(certificates))


async def test_a_file_system_that_hangs_lets_connections_in_with_the_certificate_that_is_there(
    no_leaks: object, engine: Engine, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_EVERY", 0.0)
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    hanging, answered, asked = threading.Event(), module._stamp, 0

    def hang(path: Path | None) -> tuple[int, int, int] | None:
        nonlocal asked
        asked += 1
        hanging.wait(20)
        return answered(path)

    async with StorageSCP(accept, port=0, engine=engine, tls=put(certificates.server, tmp_path)) as scp:
        monkeypatch.setattr(module, "_stamp", hang)
        for _ in range(3):
            await echo(scp.port, client(certificates))
        # One look hangs, and no further ones stand in line behind it.
        assert asked == 1
        hanging.set()


async def test_a_certificate_that_is_no_good_from_the_start_is_a_configuration_error(
    no_leaks: object, engine: Engine, certificates: Certificates
) -> None:
    tls = ServerTLS(certificates.server.certificate, certificates.client.key)
    with pytest.raises(ConfigurationError, match=r"scp\.tls"):
        async with StorageSCP(accept, port=0, engine=engine, tls=tls):
            pass


async def test_an_encrypted_key_is_a_configuration_error_and_asks_nobody(
    no_leaks: object, engine: Engine, certificates: Certificates, tmp_path: Path
) -> None:
    key = serialization.load_pem_private_key(certificates.server.key.read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hunter2")
    )
    (tmp_path / "key").write_bytes(encrypted)
    with pytest.raises(ConfigurationError, match="the key is encrypted"):
        async with StorageSCP(accept, port=0, engine=engine, tls=ServerTLS(certificates.server.certificate, tmp_path / "key")):
            pass
