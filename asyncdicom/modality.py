"""What we know of a peer: frozen dataclasses, checked when they are made."""

from __future__ import annotations

import ipaddress
import re
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Literal

from asyncdicom.errors import ConfigurationError

Engine = Literal["native", "pynetdicom"]

# PS3.5 section 6.2, AE: 16 characters of the default repertoire without backslash and control characters.
_AE_TITLE = re.compile(r"[\x20-\x5b\x5d-\x7e]{1,16}")
_HOURS = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TARGET = re.compile(r"(?P<ae>[^@]{1,16})@(?P<host>\[[0-9a-fA-F:.%]+\]|[^:@\[\]]+):(?P<port>\d{1,5})")


def check_ae_title(value: str, path: str = "ae_title") -> str:
    """Return an AE title without its padding.

    :raises ConfigurationError: when it is empty, longer than 16 characters, or has characters that PS3.5 forbids
    """
    stripped = value.strip(" ")
    if not _AE_TITLE.fullmatch(stripped):
        raise ConfigurationError(path, value, "an AE title has 1 to 16 characters, printable ASCII without backslash")
    return stripped


def is_loopback(host: str) -> bool:
    """Whether a listener on a host is reachable from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each phase may take, in seconds.

    ``operation`` is the wait for one response; it starts again with every response that is Pending. ``move`` is the same
    for C-MOVE, whose peers can be silent for minutes.
    """

    resolve: float = 2.0
    connect: float = 3.0
    associate: float = 5.0
    operation: float = 10.0
    release: float = 2.0
    move: float = 300.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if not value > 0:
                raise ConfigurationError(f"timeouts.{name}", value, "a timeout is a number of seconds above 0")


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may cost us.

    :ivar max_pdu: the maximum PDU length that we announce, in bytes; larger ones are refused unread (PS3.8 D.1)
    :ivar max_object_size: the largest message that we take from the peer, in bytes
    :ivar per_modality: associations at once
    """

    max_pdu: int = 131_072
    max_object_size: int = 4 << 30
    per_modality: int = 1

    def __post_init__(self) -> None:
        if not 4_096 <= self.max_pdu <= 4 << 20:
            raise ConfigurationError("limits.max_pdu", self.max_pdu, "between 4096 and 4194304 bytes")
        if self.max_object_size < 1:
            raise ConfigurationError("limits.max_object_size", self.max_object_size, "at least one byte")
        if self.per_modality < 1:
            raise ConfigurationError("limits.per_modality", self.per_modality, "at least one association")


@dataclass(frozen=True, slots=True)
class TLS:
    """TLS towards a peer; the peer is always verified.

    :ivar ca: file of the authorities that may have signed the peer; None means those of the system
    :ivar certificate: our certificate chain, for mutual TLS
    :ivar key: its private key
    :ivar server_name: the name to verify instead of the host
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ConfigurationError("tls", "", "certificate and key go together: give both or neither")


@dataclass(frozen=True, slots=True)
class UserIdentity:
    """User identity negotiation (PS3.7 D.3.3.7).

    :ivar kind: username, username and passcode, Kerberos ticket, SAML assertion or JSON web token
    :ivar primary: the user name or the token
    :ivar secondary: the passcode, for ``username+passcode`` alone
    :ivar response: ask the peer to confirm
    """

    kind: Literal["username", "username+passcode", "kerberos", "saml", "jwt"]
    primary: bytes = field(repr=False)
    secondary: bytes = field(default=b"", repr=False)
    response: bool = False

    @property
    def type_code(self) -> int:
        """The User-Identity-Type of PS3.7 Table D.3-14."""
        return {"username": 1, "username+passcode": 2, "kerberos": 3, "saml": 4, "jwt": 5}[self.kind]


@dataclass(frozen=True, slots=True)
class QuietHours:
    """A part of the day: in which a modality is not swept, because it is off or busy; or in which alone a sweep runs.

    :ivar start: minutes since midnight, local time
    :ivar end: the first minute after; before the start, it goes over midnight
    """

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> QuietHours:
        """Make them of text such as ``22:00-06:00``.

        :raises ConfigurationError: when it has another form, or is the whole day or none of it
        """
        match = _HOURS.fullmatch(text.replace(" ", ""))
        numbers = [int(number) for number in match.groups()] if match is not None else []
        if not numbers or numbers[0] > 23 or numbers[2] > 23 or max(numbers[1], numbers[3]) > 59:
            raise ConfigurationError("quiet_hours", text, 'a time of day such as "22:00-06:00"')
        start, end = numbers[0] * 60 + numbers[1], numbers[2] * 60 + numbers[3]
        if start == end:
            raise ConfigurationError("quiet_hours", text, "the beginning and the end of a part of the day")
        return cls(start, end)

    def covers(self, minute: int) -> bool:
        """Whether a minute of the day is one of them."""
        if self.start < self.end:
            return self.start <= minute < self.end
        return minute >= self.start or minute < self.end

    def cover(self, now: time.struct_time) -> bool:
        """Whether a moment is in them.

        :param now: local time
        """
        return self.covers(now.tm_hour * 60 + now.tm_min)


@dataclass(frozen=True, slots=True)
class WeekHours:
    """A part of the week, by local time.

    :ivar days: on which it begins, Monday being 0
    :ivar hours: the time of day; None for the whole day. Over midnight it goes into the day after
    """

    days: frozenset[int]
    hours: QuietHours | None = None

    @classmethod
    def parse(cls, text: str) -> WeekHours:
        """Make it of text such as ``Mon-Fri 07:00-18:00``, ``Sat,Sun``, or ``22:00-06:00`` for every day.

        :raises ConfigurationError: when it has another form
        """
        words = text.split()
        days, hours = frozenset(range(7)), None
        try:
            if not words or len(words) > 2:
                raise ValueError(text)
            if not words[0][0].isdigit():
                days = _days(words.pop(0))
            if words:
                hours = QuietHours.parse(words.pop(0))
            if words:
                raise ValueError(text)
        except (ValueError, ConfigurationError):
            raise ConfigurationError("hours", text, 'hours of the week such as "Mon-Fri 07:00-18:00"') from None
        return cls(days, hours)

    def covers(self, weekday: int, minute: int) -> bool:
        """Whether a minute of a day is in it.

        :param weekday: Monday being 0
        :param minute: since midnight
        """
        if self.hours is None:
            return weekday in self.days
        if self.hours.start < self.hours.end or minute >= self.hours.start:
            return weekday in self.days and self.hours.covers(minute)
        return (weekday - 1) % 7 in self.days and self.hours.covers(minute)


def _days(text: str) -> frozenset[int]:
    """The days of ``Mon-Wed,Fri``.

    :raises ValueError: when one is no day
    """
    days: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        start = _DAYS.index(first)
        length = (_DAYS.index(last) - start) % 7 if dash else 0
        days.update((start + offset) % 7 for offset in range(length + 1))
    return frozenset(days)


@dataclass(frozen=True, slots=True)
class Arrivals:
    """When instances are expected of a modality, by the local clock.

    :ivar within: seconds of expected hours in which something has to come; None: what is usual is learnt
    :ivar hours: in which something is expected; none for always
    :ivar holidays: days on which nothing is expected, and nothing learnt
    """

    within: float | None = None
    hours: tuple[WeekHours, ...] = ()
    holidays: frozenset[date] = frozenset()

    @property
    def is_learnt(self) -> bool:
        """Whether what arrives decides what is expected."""
        return self.within is None


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Modality:
    """A DICOM device: an address, a port and an AE title.

    :ivar name: what we call it; unique in an inventory
    :ivar ae_title: its AE title (the called one)
    :ivar host: host name or address
    :ivar port: TCP port
    :ivar calling_ae_title: how we introduce ourselves to it; None for the default
    :ivar groups: names under which it can be addressed as ``@group``
    :ivar engine: which engine talks to it; None for the default
    :ivar one_operation_per_association: it mishandles a second one
    :ivar quiet_hours: when it is not swept, and nothing is expected of it
    :ivar probe_store: a probe may send it a synthetic instance
    :ivar down_after: failures in a row of one operation after which it is down
    :ivar up_after: successes in a row of one operation after which that is no longer why it is down
    :ivar arrivals: when it is expected to send; None when its silence says nothing
    """

    name: str
    ae_title: str
    host: str
    port: int = 104
    calling_ae_title: str | None = None
    groups: tuple[str, ...] = ()
    timeouts: Timeouts = field(default_factory=Timeouts)
    limits: Limits = field(default_factory=Limits)
    tls: TLS | None = None
    user_identity: UserIdentity | None = None
    engine: Engine | None = None
    one_operation_per_association: bool = False
    probe_store: bool = False
    quiet_hours: tuple[QuietHours, ...] = ()
    down_after: int = 1
    up_after: int = 1
    arrivals: Arrivals | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigurationError("name", self.name, "give the modality a name")
        object.__setattr__(self, "ae_title", check_ae_title(self.ae_title))
        if self.calling_ae_title is not None:
            object.__setattr__(self, "calling_ae_title", check_ae_title(self.calling_ae_title, "calling_ae_title"))
        if not self.host or any(character.isspace() or character == "\0" for character in self.host):
            raise ConfigurationError("host", self.host, "a host name or an address")
        if not 1 <= self.port <= 65_535:
            raise ConfigurationError("port", self.port, "a TCP port from 1 to 65535")
        for name in ("down_after", "up_after"):
            if getattr(self, name) < 1:
                raise ConfigurationError(name, getattr(self, name), "at least 1 in a row")

    @classmethod
    def parse(cls, target: str) -> Modality:
        """Make a modality of ``AET@host:port``; IPv6 addresses stand in brackets.

        :raises ConfigurationError: when the text has another form
        """
        match = _TARGET.fullmatch(target)
        if match is None:
            raise ConfigurationError("target", target, "write AET@host:port, for example PACS@10.1.2.3:11112")
        host = match["host"].strip("[]")
        return cls(name=target, ae_title=match["ae"], host=host, port=int(match["port"]))

    def is_quiet(self, now: time.struct_time) -> bool:
        """Whether it is not to be swept.

        :param now: local time
        """
        return any(hours.cover(now) for hours in self.quiet_hours)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}@{host}:{self.port}"
