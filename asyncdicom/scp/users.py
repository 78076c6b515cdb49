"""Names and passcodes of those who may in: a text file with a hash a line, and never a passcode."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from asyncdicom.errors import ConfigurationError

# The first letters of a hash: the text form may have to change one day.
_VERSION = "scrypt1"
# RFC 7914: the logarithm of N, r and p. Some 50 ms, and 16 MiB.
_COST = (14, 8, 1)
_SALT = 16
_LENGTH = 32
# A file from somewhere must not make one verification take seconds or all memory, nor be worth nothing.
_LOGS = range(10, 19)
_BLOCKS = range(1, 17)
_PARALLEL = range(1, 9)
_MEMORY = 256 << 20
_HASH = re.compile(rf"{_VERSION}\$(\d{{1,3}})\$(\d{{1,3}})\$(\d{{1,3}})\$([A-Za-z0-9+/]+=*)\$([A-Za-z0-9+/]+=*)")
_LARGEST_FILE = 4 << 20


@dataclass(frozen=True, slots=True)
class HashedPasscode:
    """What is kept of a passcode (RFC 7914).

    :ivar cost: the logarithm of N, r and p
    """

    cost: tuple[int, int, int]
    salt: bytes = field(repr=False)
    digest: bytes = field(repr=False)

    @classmethod
    def make(cls, passcode: bytes) -> HashedPasscode:
        """Hash a passcode. Takes 50 ms or so, so not on the event loop."""
        salt = secrets.token_bytes(_SALT)
        return cls(_COST, salt, _derive(passcode, _COST, salt))

    @classmethod
    def parse(cls, text: str) -> HashedPasscode:
        """Read the text form.

        :raises ValueError: when it is none, or its cost is out of all proportion; the message says what it should be
        """
        match = _HASH.fullmatch(text)
        if match is None:
            raise ValueError(f"no hash of the form {_VERSION}$14$8$1$SALT$DIGEST")
        logarithm, block, parallel = (int(number) for number in match.groups()[:3])
        if logarithm not in _LOGS or block not in _BLOCKS or parallel not in _PARALLEL or 128 * block << logarithm > _MEMORY:
            raise ValueError("a cost that is out of all proportion")
        try:
            salt, digest = (base64.b64decode(part, validate=True) for part in match.groups()[3:])
        except binascii.Error:
            raise ValueError("salt or digest are not base64") from None
        if len(salt) < _SALT or len(digest) != _LENGTH:
            raise ValueError(f"salt or digest are cut: they have {_SALT} and {_LENGTH} bytes")
        return cls((logarithm, block, parallel), salt, digest)

    def matches(self, passcode: bytes) -> bool:
        """Whether this is the passcode. Takes 50 ms or so, so not on the event loop."""
        return hmac.compare_digest(_derive(passcode, self.cost, self.salt), self.digest)

    def __str__(self) -> str:
        salt, digest = (base64.b64encode(part).decode("ascii") for part in (self.salt, self.digest))
        return "$".join((_VERSION, *map(str, self.cost), salt, digest))


def _derive(passcode: bytes, cost: tuple[int, int, int], salt: bytes) -> bytes:
    logarithm, block, parallel = cost
    return hashlib.scrypt(passcode, salt=salt, n=1 << logarithm, r=block, p=parallel, maxmem=2 * _MEMORY, dklen=_LENGTH)


class Users:
    """Who may in by name and passcode.

    :param users: the hash of each name, which is UTF-8
    """

    def __init__(self, users: Mapping[bytes, HashedPasscode]) -> None:
        self._users = dict(users)
        self._secret = secrets.token_bytes(32)
        self._others = list(self._users.values()) or [HashedPasscode.make(self._secret)]
        # What was right before is right again at no cost: devices ask for an association for every image. Only under a secret
        # of this process, and of each name the last one.
        self._proven: dict[bytes, bytes] = {}

    @classmethod
    def read(cls, path: Path, setting: str = "users_file") -> Users:
        """Read a file of users: a name, a colon and a hash a line; empty lines, and those that begin with #, say nothing.

        :param setting: what names the file, for the message
        :raises ConfigurationError: naming the first line that is wrong, and never what is in it
        """
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ConfigurationError(setting, str(path), f"a file of users has at most {_LARGEST_FILE} bytes")
            lines = path.read_bytes().decode("utf-8-sig").splitlines()
        except OSError as error:
            raise ConfigurationError(setting, str(path), f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigurationError(setting, str(path), "save the file as UTF-8") from None
        users: dict[bytes, HashedPasscode] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            name, _, text = line.strip().rpartition(":")
            try:
                hashed = HashedPasscode.parse(text)
            except ValueError as error:
                remedy = f"line {number} has {error}: make it with asyncdicom hash-passcode NAME"
                raise ConfigurationError(setting, str(path), remedy) from None
            if not name or name.encode() in users:
                what = "has the name of an earlier line" if name else "has no name"
                raise ConfigurationError(setting, str(path), f"line {number} {what}: each name stands there once")
            users[name.encode()] = hashed
        if not users:
            raise ConfigurationError(setting, str(path), "nobody is in it: add lines with asyncdicom hash-passcode NAME")
        return cls(users)

    def remembers(self, name: bytes, passcode: bytes) -> bool:
        """Whether a name has proven this passcode before. Takes no time, and says nothing about one that was not right."""
        return hmac.compare_digest(self._proven.get(name, b""), self._proof(name, passcode))

    def _proof(self, name: bytes, passcode: bytes) -> bytes:
        return hmac.digest(self._secret, len(name).to_bytes(4, "big") + name + passcode, "sha256")

    def knows(self, name: bytes, passcode: bytes) -> bool:
        """Whether a name has this passcode. Takes 50 ms or so, known or not, so not on the event loop."""
        hashed = self._users.get(name)
        if hashed is None:
            # Somebody else's hash in its place, always the same one: it takes as long as a name that there is.
            chosen = hmac.digest(self._secret, name, "sha256")
            self._others[int.from_bytes(chosen, "big") % len(self._others)].matches(passcode)
            return False
        if not hashed.matches(passcode):
            return False
        self._proven[name] = self._proof(name, passcode)
        return True

    def __len__(self) -> int:
        return len(self._users)

    def __repr__(self) -> str:
        return f"<Users: {len(self)}>"
