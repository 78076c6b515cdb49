"""What an event is to those who are told of it, and what a target of events promises."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol, Self

from asyncdicom.archive.contract import Event


@dataclass(frozen=True, slots=True)
class Message:
    """An event as its receivers see it. Every attempt, at every target, carries the same.

    :ivar id: the same for every repetition, and of no other event: the key by which a receiver recognises one
    :ivar kind: one of :data:`asyncdicom.events.kinds.FIELDS`, such as ``study.complete``
    :ivar created_at: seconds since the epoch (UTC)
    :ivar data: what happened; the keys are those of :data:`asyncdicom.events.kinds.FIELDS`
    """

    id: str
    kind: str
    created_at: float
    data: dict[str, Any]

    @classmethod
    def of(cls, event: Event, identity: str) -> Self:
        """The message for a row of the outbox.

        :param identity: which index it is from
        """
        # With the time, because an index that was restored from a backup gives numbers again.
        return cls(f"{identity}-{event.id}-{int(event.created_at * 1000):x}", event.kind, event.created_at, event.payload)

    def encoded(self) -> bytes:
        """The message as JSON: an object with ``id``, ``kind``, ``created_at`` and ``data``."""
        body = {"id": self.id, "kind": self.kind, "created_at": self.created_at, "data": self.data}
        return json.dumps(body, separators=(",", ":")).encode()


def subject_of(event: Event) -> str:
    """What an event speaks of. A target gets one at a time of each, in the order in which they happened."""
    for key in ("StudyInstanceUID", "modality"):
        if value := event.payload.get(key):
            return f"{key} {value}"
    return f"event {event.id}"


class Target(Protocol):
    """Somebody who is told. An async context manager: it delivers once entered.

    :ivar name: what the configuration calls it
    :ivar on: the kinds of event that it wants
    :ivar concurrency: how many events it takes at once
    :ivar key: signs what is sent, for those that sign; None for no signature. It may be replaced at any time
    """

    key: bytes | None

    @property
    def name(self) -> str: ...

    @property
    def on(self) -> Collection[str]: ...

    @property
    def concurrency(self) -> int: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *exception: Any) -> None: ...

    async def deliver(self, message: Message) -> None:
        """Return once the event is taken; that may be the second time for the same one.

        :raises DeliveryFailed: when it is not; the detail says why, without anything of the event
        """
