"""Who may in by JSON web token (PS3.7 D.3.3.7, RFC 7519)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa

from asyncdicom import AssociationRejected, ConfigurationError, Identities, Received, StorageSCP, UserIdentity, WebTokens
from asyncdicom.modality import Engine
from asyncdicom.testing import Wire
from tests.scp.conftest import Seen

jwt = pytest.importorskip("jwt", reason="PyJWT is not installed")

RSA = rsa.generate_private_key(65_537, 2_048)
KEYS: dict[str, Any] = {
    "RS256": RSA,
    "PS512": RSA,
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "EdDSA": ed25519.Ed25519PrivateKey.generate(),
}
SECRET = b"s3cret-" * 6


def pem(key: Any) -> bytes:
    encoded: bytes = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return encoded


def token(key: Any = RSA, algorithm: str = "RS256", /, **claims: Any) -> bytes:
    said = {"sub": "jane", "aud": "archive", "iss": "login", "exp": time.time() + 60, **claims}
    encoded: str = jwt.encode({name: value for name, value in said.items() if value is not None}, key, algorithm=algorithm)
    return encoded.encode()


def tokens(folder: Path, data: bytes = b"", **settings: Any) -> WebTokens:
    path = folder / "key.pem"
    path.write_bytes(data or pem(RSA))
    return WebTokens.read(path, **{"audience": "archive", "issuer": "login", **settings})


async def accept(received: Received) -> int:
    return 0x0000


@pytest.mark.parametrize("algorithm", KEYS)
def test_a_token_of_the_key_is_believed(tmp_path: Path, algorithm: str) -> None:
    assert tokens(tmp_path, pem(KEYS[algorithm])).believes(token(KEYS[algorithm], algorithm))


def test_a_token_of_the_secret_is_believed(tmp_path: Path) -> None:
    believed = tokens(tmp_path, SECRET + b"\n")
    assert believed.believes(token(SECRET, "HS256"))
    assert "s3cret" not in repr(believed)


# Times are seconds from now.
WRONG: dict[str, Any] = {
    "expired": {"exp": -120},
    "without an end": {"exp": None},
    "not yet": {"nbf": 120},
    "for somebody else": {"aud": "other"},
    "for nobody": {"aud": None},
    "from somebody else": {"iss": "other"},
    "from nobody": {"iss": None},
    "an end that is none": {"exp": "tomorrow"},
}


@pytest.mark.parametrize("claims", WRONG.values(), ids=WRONG)
def test_a_token_that_does_not_hold_is_not_believed(tmp_path: Path, claims: dict[str, Any]) -> None:
    if claims.get("exp") == "tomorrow":
        parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"alg": "RS256"}, claims)]
        assert not tokens(tmp_path).believes(b".".join([*parts, b"AAAA"]))
        return
    said = {name: value + time.time() if isinstance(value, int) else value for name, value in claims.items()}
    assert not tokens(tmp_path).believes(token(**said))


def test_the_algorithm_is_that_of_the_key_and_not_of_the_token(tmp_path: Path) -> None:
    believed = tokens(tmp_path)
    unsigned = token(None, "none")
    other = token(rsa.generate_private_key(65_537, 2_048))
    for forged in (unsigned, other, token(KEYS["ES256"], "ES256"), token(SECRET, "HS256")):
        assert not believed.believes(forged)
    # Signed with our public key as if that were a secret, which PyJWT itself refuses to do.
    head, body, _ = token(SECRET, "HS256").split(b".")
    signature = hmac.new(pem(RSA), head + b"." + body, hashlib.sha256).digest()
    assert not believed.believes(b".".join((head, body, jwt.utils.base64url_encode(signature))))


@pytest.mark.parametrize("said", [b"", b"a.b.c", b"\xff" * 100, b"." * 60_000, b"e30.e30.e30", b"[" * 60_000])
def test_what_is_no_token_is_not_believed(tmp_path: Path, said: bytes) -> None:
    assert not tokens(tmp_path).believes(said)


def test_a_key_that_is_no_good_is_told(tmp_path: Path) -> None:
    private = RSA.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    for data, said in (
        (private, "public key of who signs"),
        (b"-----BEGIN PUBLIC KEY-----\nhunter2\n-----END PUBLIC KEY-----\n", "not a public key in PEM"),
        (b"hunter2", "at least 32 bytes"),
        (pem(rsa.generate_private_key(65_537, 1_024)), "at least 2048 bits"),  # noqa: S505 - too short on purpose
        (pem(dsa.generate_private_key(2_048)), "a key of RSA"),
    ):
        with pytest.raises(ConfigurationError, match=said) as caught:
            tokens(tmp_path, data)
        assert "hunter2" not in str(caught.value)


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(pem(RSA))
    (tmp_path / "a.toml").write_text('[scp.user_identity]\njwt_key_file = "key"\n')
    program = (
        "import sys; sys.modules['jwt'] = None\n"
        "from asyncdicom.service.config import ConfigurationErrors, load\n"
        "try: load(sys.argv[1])\n"
        "except ConfigurationErrors as errors: print(errors)"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path / "a.toml"], capture_output=True, text=True, check=True)
    assert "scp.user_identity.jwt_key_file" in done.stdout
    assert "pip install 'asyncdicom[jwt]'" in done.stdout


@pytest.mark.blocking
async def test_who_brings_a_token_is_let_in_while_it_holds(
    no_leaks: object, engine: Engine, seen: Seen, tmp_path: Path
) -> None:
    believed = Identities(tokens=tokens(tmp_path))
    async with StorageSCP(accept, port=0, engine=engine, identities=believed, observer=seen) as scp:
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            accepted = await wire.associate(user_identity=UserIdentity("jwt", token(), response=True))
            assert accepted.user_identity_response == b""
            assert await wire.echo() == 0x0000
            assert await wire.release()
        async with await Wire.connect("127.0.0.1", scp.port) as wire:
            with pytest.raises(AssociationRejected) as caught:
                await wire.associate(user_identity=UserIdentity("jwt", token(exp=time.time() - 120)))
        assert (caught.value.result, caught.value.source, caught.value.diagnostic) == (1, 1, 1)
    assert seen.rejected == {"user_identity": 1}
