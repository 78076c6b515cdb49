"""Who may in by user identity (bar S9): verified off the loop, answered the same whatever is wrong, and said nowhere."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import statistics
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import anyio
import pytest
from pynetdicom.ae import ApplicationEntity
from pynetdicom.pdu_primitives import UserIdentityNegotiation
from pynetdicom.sop_class import Verification

from asyncdicom import (
    AssociationRejected,
    ConfigurationError,
    HashedPasscode,
    Identities,
    Modality,
    Received,
    StorageSCP,
    UserIdentity,
    Users,
    associate,
)
from asyncdicom.modality import Engine
from asyncdicom.scp import identity as identity_module
from asyncdicom.testing import Wire
from tests.peers import dcmtk
from tests.peers.peer import Address
from tests.scp.conftest import Seen

Kind = Literal["username", "username+passcode", "kerberos", "saml", "jwt"]

NOT_BELIEVED = (1, 1, 1)
NAME, PASSCODE = b"jane.canary", b"pass:word-c\xc3\xa4nary"
HASH = HashedPasscode.make(PASSCODE)


async def accept(received: Received) -> int:
    return 0x0000


def identities(*, required: bool = True) -> Identities:
    return Identities(Users({NAME: HASH, b"other": HashedPasscode.make(b"other")}), required=required)


def with_passcode(name: bytes = NAME, passcode: bytes = PASSCODE, *, response: bool = False) -> UserIdentity:
    return UserIdentity("username+passcode", name, passcode, response)


@asynccontextmanager
async def serving(engine: Engine, seen: Seen, **settings: Any) -> AsyncIterator[int]:
    settings.setdefault("identities", identities())
    async with StorageSCP(accept, port=0, engine=engine, observer=seen, **settings) as scp:
        yield scp.port


async def answer(port: int, identity: UserIdentity | None) -> bytes | tuple[int, int, int] | None:
    """The server response of an association that was accepted, or what it was rejected with."""
    async with await Wire.connect("127.0.0.1", port) as wire:
        try:
            accepted = await wire.associate(user_identity=identity)
        except AssociationRejected as rejected:
            return rejected.result, rejected.source, rejected.diagnostic
        assert await wire.echo() == 0x0000
        assert await wire.release()
        return accepted.user_identity_response


async def test_a_name_with_its_passcode_is_let_in(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen) as port:
        assert await answer(port, with_passcode()) is None
        # Once more: what was proven is remembered.
        assert await answer(port, with_passcode()) is None
    assert not seen.rejected


async def test_a_confirmation_is_given_where_it_is_asked_for(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen) as port:
        assert await answer(port, with_passcode(response=True)) == b""


@pytest.mark.parametrize(
    "identity",
    [
        pytest.param(None, id="none"),
        pytest.param(with_passcode(passcode=b"wrong"), id="wrong passcode"),
        pytest.param(with_passcode(passcode=b""), id="no passcode"),
        pytest.param(with_passcode(passcode=PASSCODE + b" "), id="passcode and more"),
        pytest.param(with_passcode(b"mallory"), id="unknown name"),
        pytest.param(with_passcode(b"other"), id="passcode of another one"),
        pytest.param(UserIdentity("username", NAME), id="name alone"),
        pytest.param(UserIdentity("kerberos", b"ticket"), id="Kerberos"),
        pytest.param(UserIdentity("saml", b"<assertion/>", response=True), id="SAML"),
        pytest.param(UserIdentity("jwt", b"a.b.c"), id="token without a key"),
    ],
)
async def test_an_identity_that_is_not_believed_is_rejected_permanently(
    no_leaks: object, engine: Engine, seen: Seen, identity: UserIdentity | None
) -> None:
    async with serving(engine, seen) as port:
        assert await answer(port, identity) == NOT_BELIEVED
        # Its place is free again.
        assert await answer(port, with_passcode()) is None
        await seen.settled()
    assert seen.rejected == {"user_identity": 1}
    assert seen.accepted == 1


async def test_where_none_is_required_only_a_wrong_one_is_kept_out(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen, identities=identities(required=False)) as port:
        assert await answer(port, None) is None
        assert await answer(port, with_passcode(passcode=b"wrong")) == NOT_BELIEVED
    assert seen.rejected == {"user_identity": 1}


async def test_where_none_is_verified_none_is_confirmed(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen, identities=None) as port:
        assert await answer(port, with_passcode(passcode=b"wrong", response=True)) is None
    assert not seen.rejected


async def test_who_is_kept_out_holds_no_place(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen, max_associations=1) as port:
        for _ in range(3):
            assert await answer(port, with_passcode(passcode=b"wrong")) == NOT_BELIEVED
        await seen.settled()
        assert await answer(port, with_passcode()) is None


async def test_other_users_count_from_the_next_request_on(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with StorageSCP(accept, port=0, engine=engine, identities=identities()) as scp:
        assert await answer(scp.port, with_passcode()) is None
        scp.identities = Identities(Users({NAME: HashedPasscode.make(b"another")}))
        assert await answer(scp.port, with_passcode()) == NOT_BELIEVED
        assert await answer(scp.port, with_passcode(passcode=b"another")) is None


async def test_a_flood_of_guesses_waits_for_a_few_threads_and_the_rest_is_sent_away(
    no_leaks: object, engine: Engine, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identity_module, "_MAX_OF_ONE", 4)
    answers: list[object] = []

    async def guess(port: int, number: int) -> None:
        answers.append(await answer(port, with_passcode(passcode=f"guess {number}".encode())))

    async with serving(engine, seen) as port:
        async with await Wire.connect("127.0.0.1", port) as wire:
            await wire.associate(user_identity=with_passcode())
            async with anyio.create_task_group() as tasks:
                for number in range(24):
                    tasks.start_soon(guess, port, number)
                # Who is in does not notice.
                started = time.monotonic()
                assert await wire.echo() == 0x0000
                # And who was believed before does not stand in line.
                assert await answer(port, with_passcode()) is None
                assert time.monotonic() - started < 1.0
                threads = [thread for thread in threading.enumerate() if thread.name.startswith("asyncdicom-identity")]
                assert 1 <= len(threads) <= max(1, (os.cpu_count() or 1) // 2)
    assert set(answers) == {NOT_BELIEVED, (2, 3, 1)}
    assert seen.rejected["user_identity"] + seen.rejected["limit"] == 24
    assert seen.rejected["user_identity"] >= 4


async def test_who_guesses_at_one_address_keeps_nobody_out_at_another(
    no_leaks: object, engine: Engine, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other address is a loopback one, too: only where a connection comes from counts."""
    monkeypatch.setattr(identity_module, "_MAX_OF_ONE", 2)
    async with serving(engine, seen) as port:

        async def guess(number: int) -> None:
            await answer(port, with_passcode(passcode=f"guess {number}".encode()))

        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(guess, number)
            sock = socket.socket()
            sock.setblocking(False)
            sock.bind(("127.0.0.2", 0))
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            reader, writer = await asyncio.open_connection(sock=sock)
            async with Wire(reader, writer) as wire:
                await wire.associate(user_identity=with_passcode())
                assert await wire.release()
    assert seen.rejected["limit"] > 0


async def test_the_log_says_what_to_do(no_leaks: object, engine: Engine, seen: Seen, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(engine, seen) as port:
        for _ in range(3):
            await answer(port, None)
        await answer(port, with_passcode(passcode=b"wrong"))
        await seen.settled()
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    # Once for the reason and the address, however often it comes.
    assert told == [
        "turned away (user_identity): 'WIRE' at 127.0.0.1: it brings no user identity, and scp.user_identity requires one:"
        " turn it on there"
    ]


async def test_a_peer_that_leaves_while_it_is_verified_leaves_nothing_behind(
    no_leaks: object, engine: Engine, seen: Seen
) -> None:
    async with serving(engine, seen, max_associations=4) as port:
        for _ in range(4):
            async with await Wire.connect("127.0.0.1", port) as wire:
                with anyio.move_on_after(0.01):
                    await wire.associate(user_identity=with_passcode(passcode=b"wrong"))
        with anyio.fail_after(5):
            while await answer(port, with_passcode()) is not None:
                await anyio.sleep(0.05)
        await seen.settled()


async def test_neither_names_nor_passcodes_are_logged(
    no_leaks: object, engine: Engine, seen: Seen, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving(engine, seen) as port:
        await answer(port, with_passcode())
        await answer(port, with_passcode(passcode=b"passcode-canary"))
        await answer(port, with_passcode(b"mallory-canary"))
        await answer(port, UserIdentity("jwt", b"token-canary.a.b"))
        await seen.settled()
    said = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "canary" not in said
    assert "c\xe4nary" not in said
    assert "canary" not in repr(identities()) + repr(HASH)


async def test_our_own_requestor_is_let_in(no_leaks: object, engine: Engine, seen: Seen) -> None:
    async with serving(engine, seen) as port:
        modality = Modality("scp", "ANY-SCP", "127.0.0.1", port, user_identity=with_passcode(response=True))
        async with associate(modality, engine=engine) as association:
            assert await association.echo() == 0x0000


@pytest.mark.blocking
@pytest.mark.parametrize("passcode", [PASSCODE, b"wrong"])
async def test_pynetdicom_is_let_in_with_the_right_passcode(
    no_leaks: object, engine: Engine, seen: Seen, passcode: bytes
) -> None:
    item = UserIdentityNegotiation()
    item.user_identity_type, item.primary_field, item.secondary_field = 2, NAME, passcode
    item.positive_response_requested = True
    ae = ApplicationEntity("FOREIGN")

    def ask(port: int) -> tuple[bool, bool]:
        association = ae.associate("127.0.0.1", port, contexts=[_verification()], ext_neg=[item])
        is_in = association.is_established
        if is_in:
            answers = [one for one in association.acceptor.user_information if isinstance(one, UserIdentityNegotiation)]
            assert [one.server_response for one in answers] == [b""]
            association.release()
        return is_in, association.is_rejected

    async with serving(engine, seen) as port:
        assert await anyio.to_thread.run_sync(ask, port) == ((True, False) if passcode == PASSCODE else (False, True))


def _verification() -> Any:
    from pynetdicom.presentation import build_context

    return build_context(Verification)


@pytest.mark.blocking
@pytest.mark.peer("storescu")
@pytest.mark.parametrize("passcode", [PASSCODE, b"wrong"])
async def test_dcmtk_is_let_in_with_the_right_passcode(
    no_leaks: object, engine: Engine, seen: Seen, study: list[Path], passcode: bytes
) -> None:
    extra = ["--user", NAME.decode(), "--password", passcode.decode(), "--pos-response"]
    async with serving(engine, seen) as port:
        ended = await dcmtk.storescu(Address("ANY-SCP", port), study[:1], extra=extra).run_async()
    assert (ended.returncode == 0) is (passcode == PASSCODE), ended


# -- the file of users ------------------------------------------------------------------------------------------------


def test_a_file_of_users_is_read(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text(f"# who may in\n\n  a:b:{HashedPasscode.make(b'x')}\nj\xe4ne:{HASH}\r\n", "utf-8-sig")
    users = Users.read(path)
    assert len(users) == 2
    assert users.knows(b"a:b", b"x")
    assert users.knows("j\xe4ne".encode(), PASSCODE)
    assert not users.knows(b"a", b"x")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nobody is in it"),
        ("jane:hunter2\n", "line 1 has no hash"),
        ("jane\n", "line 1 has no hash"),
        (f"jane:{HASH}\njane:{HASH}\n", "line 2 has the name of an earlier line"),
        (f":{HASH}\n", "line 1 has no name"),
        (f"jane:{str(HASH).replace('$14$', '$4$')}\n", "out of all proportion"),
        (f"jane:{str(HASH).replace('$14$', '$40$')}\n", "out of all proportion"),
        (f"jane:{str(HASH).replace('$8$', '$0$')}\n", "out of all proportion"),
        (f"jane:{str(HASH).replace('$14$8$', '$18$16$')}\n", "out of all proportion"),
        (f"jane:{str(HASH).replace('scrypt1', 'scrypt2')}\n", "line 1 has no hash"),
        (f"jane:{str(HASH)[:-8]}\n", "line 1 has"),
        ("jane:scrypt1$14$8$1$YWJj$YWJj\n", "are cut"),
    ],
    # Salts are other ones each time; the names of tests are not to be.
    ids=[
        "nobody",
        "a passcode",
        "a name alone",
        "twice",
        "no name",
        "cheap",
        "dear",
        "no block",
        "large",
        "another version",
        "cut",
        "short",
    ],
)
def test_a_wrong_line_is_told_by_its_number_and_not_by_what_is_in_it(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "users"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=said) as caught:
        Users.read(path)
    assert "jane" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_text_is_told(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="UTF-8"):
        Users.read(path)
    with pytest.raises(ConfigurationError, match="No such file"):
        Users.read(tmp_path / "none")


def test_the_line_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/configuration.md").read_text()
    (line,) = re.findall(r"^ct1:scrypt1.*$", text, re.MULTILINE)
    (tmp_path / "users").write_text(line)
    assert Users.read(tmp_path / "users").knows(b"ct1", b"correct horse")


def test_the_same_passcode_has_another_hash_each_time() -> None:
    one, other = HashedPasscode.make(b"x"), HashedPasscode.make(b"x")
    assert str(one) != str(other)
    assert HashedPasscode.parse(str(one)) == one


def test_an_unknown_name_takes_as_long_as_a_wrong_passcode() -> None:
    users = Users({NAME: HASH})
    took: dict[bytes, list[float]] = {NAME: [], b"mallory": []}
    for number in range(7):
        for name, times in took.items():
            started = time.perf_counter()
            assert not users.knows(name, f"guess {number}".encode())
            times.append(time.perf_counter() - started)
    known, unknown = (statistics.median(times) for times in took.values())
    assert 0.5 < unknown / known < 2.0
