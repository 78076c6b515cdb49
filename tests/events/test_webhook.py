"""Events by webhook: signed, answered in time, and never somewhere else."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
import trustme
from anyio.abc import SocketAttribute, SocketStream
from anyio.streams.tls import TLSListener

from asyncdicom.errors import DeliveryFailed
from asyncdicom.events.contract import Message
from asyncdicom.events.signing import key_of, signature
from asyncdicom.events.webhook import Webhook
from tests.conftest import Baseline
from tests.events.receiving import lines_of, receiver

MESSAGE = Message("abc-7-1", "study.complete", 1.5, {"StudyInstanceUID": "1.2.3"})
SECRET = "of the tests"


async def deliver(url: str, **settings: Any) -> None:
    async with Webhook("webhook", url, on=["study.complete"], **settings) as target:
        await target.deliver(MESSAGE)


@asynccontextmanager
async def answering(answer: Callable[[SocketStream], Awaitable[None]]) -> AsyncIterator[int]:
    """A TCP listener whose connections are given to a function; its port."""
    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        yield listener.extra(SocketAttribute.local_port)  # noqa: S610 - of anyio
        tasks.cancel_scope.cancel()


async def test_an_event_is_posted_as_json_and_the_receiver_can_verify_it(no_leaks: Baseline, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    async with receiver(kept, secret=SECRET) as running:
        await deliver(running.url + "?a=1", key=SECRET.encode(), timeout=5)
    (line,) = await anyio.to_thread.run_sync(lines_of, kept)
    assert line["path"] == "/hook?a=1"
    assert line["body"].encode() == MESSAGE.encoded()
    headers = line["headers"]
    assert (headers["webhook-id"], headers["content-type"]) == (MESSAGE.id, "application/json")
    assert headers["host"] == f"127.0.0.1:{running.port}"
    assert headers["user-agent"].startswith("asyncdicom/")


async def test_a_signature_by_another_secret_is_refused_by_the_receiver(tmp_path: Path) -> None:
    async with receiver(tmp_path / "kept", secret=SECRET) as running:
        with pytest.raises(DeliveryFailed, match="status 401"):
            await deliver(running.url, key=b"another", timeout=5)


def test_a_signature_is_that_of_standard_webhooks() -> None:
    # The example of its specification.
    key = key_of(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


def test_a_secret_is_taken_as_it_is_or_in_base64_after_its_prefix() -> None:
    assert key_of(b" a secret \n") == b"a secret"
    assert key_of(b"whsec_YWJj") == b"abc"
    for wrong in (b"", b" \n", b"whsec_", b"whsec_?"):
        with pytest.raises(ValueError, match=r"secret|base64"):
            key_of(wrong)


@pytest.mark.parametrize(
    ("status", "words", "final"),
    [
        ("500", "answered with status 500", False),
        ("404", "answered with status 404", False),
        ("302", "redirects are not followed", False),
        ("307", "redirects are not followed", False),
        ("410", "wants it no more", True),
    ],
)
async def test_only_2xx_means_taken_and_410_that_nobody_wants_it(
    no_leaks: Baseline, tmp_path: Path, status: str, words: str, final: bool
) -> None:
    async with receiver(tmp_path / "kept", "--answer", status) as running:
        with pytest.raises(DeliveryFailed, match=words) as raised:
            await deliver(running.url, timeout=5)
    assert raised.value.final is final
    assert await anyio.to_thread.run_sync(lines_of, tmp_path / "kept") == []


async def test_a_receiver_that_hangs_or_drips_costs_the_timeout_and_no_more(no_leaks: Baseline, tmp_path: Path) -> None:
    async def drip(stream: SocketStream) -> None:
        async with stream:
            await stream.send(b"HTTP/1.1 200 OK\r\n")
            while True:
                await anyio.sleep(0.05)
                await stream.send(b"x-a: b\r\n")

    async with receiver(tmp_path / "kept", "--hang") as running, answering(drip) as port:
        for url in (running.url, f"http://127.0.0.1:{port}/"):
            with anyio.fail_after(2), pytest.raises(DeliveryFailed, match=r"no answer in 0\.3 s"):
                await deliver(url, timeout=0.3)


async def test_an_answer_without_end_is_not_read_to_its_end(no_leaks: Baseline) -> None:
    async def pour(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            try:
                while True:
                    await stream.send(b"1000\r\n" + bytes(4096) + b"\r\n")
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return

    async with answering(pour) as port:
        with anyio.fail_after(5):
            await deliver(f"http://127.0.0.1:{port}/", timeout=5)


@pytest.mark.parametrize("said", [b"", b"what?\r\n\r\n"], ids=["nothing", "nonsense"])
async def test_a_peer_that_does_not_speak_http_is_a_failure(no_leaks: Baseline, said: bytes) -> None:
    async def answer(stream: SocketStream) -> None:
        async with stream:
            await stream.receive()
            if said:
                await stream.send(said)

    async with answering(answer) as port:
        with pytest.raises(DeliveryFailed, match="the request failed: RemoteProtocolError"):
            await deliver(f"http://127.0.0.1:{port}/", timeout=5)


async def test_nobody_there_and_a_name_that_is_none_are_failures_that_say_so(
    no_leaks: Baseline, free_port: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DeliveryFailed, match="no connection: Connection refused"):
        await deliver(f"http://127.0.0.1:{free_port()}/secret-path", timeout=5)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(DeliveryFailed, match=r"pipeline\.invalid is not resolved"):
        await deliver("http://pipeline.invalid/", timeout=5)


async def test_the_next_address_of_a_name_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with receiver(tmp_path / "kept") as running:
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, running.port)) for address in ("127.9.9.9", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        await deliver(f"http://pipeline.example:{running.port}/", timeout=5)
    (line,) = await anyio.to_thread.run_sync(lines_of, tmp_path / "kept")
    assert line["headers"]["host"] == f"pipeline.example:{running.port}"


async def test_a_resolver_that_hangs_costs_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    end = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: end.wait(10) and [])
    try:
        with anyio.fail_after(2), pytest.raises(DeliveryFailed, match="no answer"):
            await deliver("http://pipeline.example/", timeout=0.2)
    finally:
        end.set()


async def test_the_certificate_of_an_https_receiver_is_verified_by_its_name(
    no_leaks: Baseline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext, ssl.SSLContext]:
        authority = trustme.CA()
        ours = ssl.create_default_context()
        authority.configure_trust(ours)
        theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("pipeline.example").configure_cert(theirs)
        return ours, theirs, ssl.create_default_context()

    ours, theirs, strangers = await anyio.to_thread.run_sync(contexts)

    async def answer(stream: Any) -> None:
        async with stream:
            await stream.receive()
            await stream.send(b"HTTP/1.1 204 No Content\r\n\r\n")

    async with await anyio.create_tcp_listener(local_host="127.0.0.1") as plain, anyio.create_task_group() as tasks:
        tasks.start_soon(TLSListener(plain, theirs, standard_compatible=False).serve, answer)
        port = plain.extra(SocketAttribute.local_port)  # noqa: S610 - of anyio
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        await deliver(f"https://pipeline.example:{port}/", timeout=5, verify=ours)
        for host, context in (("other.example", ours), ("pipeline.example", strangers)):
            with pytest.raises(DeliveryFailed, match=r"no connection: .*CERTIFICATE_VERIFY_FAILED"):
                await deliver(f"https://{host}:{port}/", timeout=5, verify=context)
        tasks.cancel_scope.cancel()


async def test_a_cancelled_post_leaves_nothing(no_leaks: Baseline, tmp_path: Path) -> None:
    async with receiver(tmp_path / "kept", "--hang") as running:
        async with Webhook("webhook", running.url, on=["study.complete"]) as target:
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(target.deliver, MESSAGE)
                await anyio.sleep(0.2)
                tasks.cancel_scope.cancel()
