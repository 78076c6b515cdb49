"""Who may in by user identity (PS3.7 D.3.3.7): what is believed, and how it is verified without holding anybody up."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

from asyncdicom.modality import UserIdentity
from asyncdicom.scp.users import Users
from asyncdicom.scp.web_token import WebTokens

# A-ASSOCIATE-RJ as result, source, reason/diagnostic (PS3.8 Table 9-21): permanent, service user, no reason given. There is no
# reason of its own for an identity, and one would help those alone who guess.
NOT_BELIEVED = (1, 1, 1)
# Permanent would be wrong: who comes again may get its turn.
TOO_MANY = (2, 3, 1)

# How many wait to be verified, and how many from one address: a flood of guesses takes the time of a few threads and no more
# memory than this, and who guesses does not keep the others out.
_MAX_WAITING = 64
_MAX_OF_ONE = 8
_MISSING = "it brings no user identity, and scp.user_identity requires one: turn it on there"
_CROWDED = "too many user identities wait to be verified: does somebody try passcodes?"


class Refusal(NamedTuple):
    """Why a request for association is rejected.

    :ivar reason: for :class:`asyncdicom.observe.Observer`
    :ivar answer: the A-ASSOCIATE-RJ: result, source, reason/diagnostic
    :ivar detail: for the log
    """

    reason: str
    answer: tuple[int, int, int]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Identities:
    """Which user identities are believed.

    :ivar users: those who come with name and passcode; None for none
    :ivar tokens: those who come with a JSON web token; None for none
    :ivar required: whether who brings no identity is kept out
    """

    users: Users | None = None
    tokens: WebTokens | None = None
    required: bool = True

    def believes(self, identity: UserIdentity) -> bool:
        """Whether an identity is who it says. Takes 50 ms or so, so not on the event loop.

        A name alone proves nothing, and nobody here can verify a Kerberos ticket or a SAML assertion.
        """
        if identity.kind == "username+passcode" and self.users is not None:
            return self.users.knows(identity.primary, identity.secondary)
        if identity.kind == "jwt" and self.tokens is not None:
            return self.tokens.believes(identity.primary)
        return False

    def remembers(self, identity: UserIdentity) -> bool:
        """Whether an identity was believed before, and costs nothing to believe again."""
        is_passcode = identity.kind == "username+passcode" and self.users is not None
        return is_passcode and self.users is not None and self.users.remembers(identity.primary, identity.secondary)


class IdentityVerification:
    """Verifies identities on threads of its own, a few at a time: what takes time on purpose must not take the processor."""

    def __init__(self) -> None:
        # One processor at least stays with the loop.
        self._executor = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 2), thread_name_prefix="asyncdicom-identity")
        self._waiting: Counter[str] = Counter()

    async def judge(self, identities: Identities, identity: UserIdentity | None, address: str) -> Refusal | None:
        """Whether a request for association is rejected for its user identity.

        :param identity: what it brought; None for none, or for one of a type that PS3.7 does not know
        :param address: of who brought it
        :return: None to accept
        """
        if identity is None:
            return Refusal("user_identity", NOT_BELIEVED, _MISSING) if identities.required else None
        if identities.remembers(identity):
            # Devices that ask for an association for every image do not stand in line behind who guesses.
            return None
        if self._waiting.total() >= _MAX_WAITING or self._waiting[address] >= _MAX_OF_ONE:
            return Refusal("limit", TOO_MANY, _CROWDED)
        self._waiting[address] += 1
        try:
            loop = asyncio.get_running_loop()
            is_believed = await loop.run_in_executor(self._executor, identities.believes, identity)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]
        return None if is_believed else Refusal("user_identity", NOT_BELIEVED)

    def close(self) -> None:
        """Give the threads back; nobody waits for what they are at."""
        self._executor.shutdown(wait=False, cancel_futures=True)


def response_to(identity: UserIdentity | None, identities: Identities | None) -> bytes | None:
    """The server response for an A-ASSOCIATE-AC (PS3.7 D.3.3.7.2); None for no such sub-item.

    Who is not verified here must not take an answer for a confirmation. Neither a passcode nor a JSON web token has anything
    to be answered with, so the field is empty.
    """
    if identities is None or identity is None or not identity.response:
        return None
    return b""
