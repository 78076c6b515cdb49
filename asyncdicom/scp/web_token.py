"""JSON web tokens as user identity (PS3.7 D.3.3.7, RFC 7519), by PyJWT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from asyncdicom.errors import ConfigurationError

_REMEDY = "tokens need PyJWT: pip install 'asyncdicom[jwt]'"
# Bytes of the shortest secret that an HMAC with SHA-256 may have (RFC 7518 section 3.2).
_SHORTEST_SECRET = 32
_SMALLEST_RSA = 2048
# How far clocks may differ, in seconds.
_LEEWAY = 30.0
_LARGEST_KEY = 64 << 10
_CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


class WebTokens:
    """Believes tokens that one key has signed.

    The algorithms are those of the key's kind, whatever a token says: else somebody could sign with the public key as secret.

    :param key: the key, as PyJWT takes it
    :param algorithms: those of its kind
    :param audience: what a token must name as its audience; None for tokens that name none
    :param issuer: what it must name as its issuer; None for any
    """

    def __init__(self, key: Any, algorithms: tuple[str, ...], audience: str | None, issuer: str | None) -> None:
        self._key = key
        self.algorithms = algorithms
        self._audience = audience
        self._issuer = issuer

    @classmethod
    def read(
        cls, path: Path, *, audience: str | None = None, issuer: str | None = None, setting: str = "jwt_key_file"
    ) -> WebTokens:
        """Read a key: a public key in PEM, or a secret of at least 32 bytes.

        :param setting: what names the file, for the message
        :raises ConfigurationError: when PyJWT is missing, or the file holds no key that is any good
        """
        try:
            import jwt  # noqa: F401 - whether it is there
            from cryptography.hazmat.primitives import serialization
        except ImportError:
            raise ConfigurationError(setting, str(path), _REMEDY) from None
        try:
            with path.open("rb") as file:
                data = file.read(_LARGEST_KEY)
        except OSError as error:
            raise ConfigurationError(setting, str(path), f"cannot be read: {error.strerror}") from None
        if b"-----BEGIN" not in data:
            secret = data.rstrip(b"\r\n")
            if len(secret) < _SHORTEST_SECRET:
                raise ConfigurationError(setting, str(path), f"a secret has at least {_SHORTEST_SECRET} bytes; or a PEM key")
            return cls(secret, ("HS256",), audience, issuer)
        if b"PRIVATE KEY" in data:
            raise ConfigurationError(setting, str(path), "a private key: we need the public key of who signs the tokens")
        try:
            key = serialization.load_pem_public_key(data)
        except Exception:
            # Whatever is wrong with it, the library has many ways to say so, some of which show parts of the file.
            raise ConfigurationError(setting, str(path), 'not a public key in PEM ("-----BEGIN PUBLIC KEY-----")') from None
        algorithms = _algorithms_of(key)
        if not algorithms:
            remedy = f"a key of RSA with at least {_SMALLEST_RSA} bits, of P-256, P-384 or P-521, or of Ed25519"
            raise ConfigurationError(setting, str(path), f"{remedy} is needed")
        return cls(key, algorithms, audience, issuer)

    def believes(self, token: bytes) -> bool:
        """Whether a token was signed by the key, for us, and holds now. It must say when it expires."""
        import jwt

        try:
            jwt.decode(
                token,
                self._key,
                algorithms=list(self.algorithms),
                audience=self._audience,
                issuer=self._issuer,
                leeway=_LEEWAY,
                options={"require": ["exp"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
            # Not why: that would show what is in it.
            return False
        return True

    def __repr__(self) -> str:
        return f"<WebTokens by {', '.join(self.algorithms)}>"


def _algorithms_of(key: object) -> tuple[str, ...]:
    """The algorithms of a public key's kind; none when it is of another kind, or weak."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

    if isinstance(key, RSAPublicKey) and key.key_size >= _SMALLEST_RSA:
        return ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
    if isinstance(key, EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return (_CURVES[key.curve.name],)
    if isinstance(key, Ed25519PublicKey):
        return ("EdDSA",)
    return ()
