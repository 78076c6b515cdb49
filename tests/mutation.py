"""Conversations on the upper layer, mutated: what a broken or hostile peer sends, from a seed (bar S1)."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from asyncdicom.upper_layer import pdu
from asyncdicom.upper_layer.message import Command, encode_command

Segments = list[bytes]

# Lengths that programs get wrong.
_LENGTHS = (
    0,
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    0x7F,
    0xFF,
    0x7FFF,
    0xFFFF,
    0x10000,
    0x1FFFF,
    0x20000,
    0x7FFFFFFF,
    0xFFFFFFFE,
    0xFFFFFFFF,
)
# Every command field of PS3.7 Annex E, and some that are none.
_FIELDS = (
    *(0x0001, 0x8001, 0x0010, 0x8010, 0x0020, 0x8020, 0x0021, 0x8021, 0x0030, 0x8030, 0x0100, 0x8100, 0x0110, 0x8110),
    *(0x0120, 0x8120, 0x0130, 0x8130, 0x0140, 0x8140, 0x0150, 0x8150, 0x0FFF, 0x0000, 0x8000, 0xFFFF, 0x0002, 0x1234),
)
_TEXTS = (
    b"",
    b"\0",
    b"1.2.840.10008.1.1",
    b"1.2." + b"9" * 90,
    b"..",
    b"\xff\xfe",
    b"a\\b\\c",
    b"1.2.3\0\0\0",
    b" " * 16,
    b"%s" * 40,
)


def split(encoded: bytes) -> Segments:
    """Cut encoded PDUs into one segment each."""
    segments = []
    at = 0
    while at < len(encoded):
        end = at + 6 + int.from_bytes(encoded[at + 2 : at + 6], "big")
        segments.append(encoded[at:end])
        at = end
    return segments


def message(context_id: int, command: Command, dataset: bytes | None = None, *, max_length: int = 4_096) -> Segments:
    """A message as segments."""
    return split(pdu.encode_message(context_id, encode_command(command), dataset, max_length=max_length))


def values(*items: tuple[int, int, bytes]) -> bytes:
    """A P-DATA-TF of presentation data values: context ID, message control header, and fragment of each."""
    body = b"".join(struct.pack(">LBB", len(data) + 2, context_id, control) + data for context_id, control, data in items)
    return pdu.encode_pdu(0x04, body)


class Mutator:
    """Makes something else of a conversation; the same seed always makes the same.

    :param seed: of its chance
    """

    def __init__(self, seed: int | str) -> None:
        self.chance = random.Random(seed)
        self._kinds: Sequence[Callable[[Segments], Segments]] = (
            self.flipped,
            self.flipped,
            self.with_a_lying_length,
            self.with_a_lying_length,
            self.with_a_lying_value_length,
            self.truncated,
            self.reordered,
            self.repeated,
            self.without_one,
            self.with_noise,
            self.with_another_pdu,
            self.with_another_pdu,
            self.in_tiny_values,
            self.on_another_context,
            self.with_empty_values,
            self.with_another_command,
            self.with_another_command,
            self.with_another_command,
            self.with_junk_after_it,
        )

    def mutate(self, segments: Segments) -> Segments:
        """Mutate in one to three ways."""
        for _ in range(self.chance.choice((1, 1, 1, 2, 3))):
            segments = self.chance.choice(self._kinds)(list(segments))
        return segments

    def _pick(self, segments: Segments, kind: int | None = None) -> int | None:
        found = [index for index, segment in enumerate(segments) if segment and kind in (None, segment[0])]
        return self.chance.choice(found) if found else None

    def flipped(self, segments: Segments) -> Segments:
        """Some bits of one PDU flipped."""
        index = self._pick(segments)
        if index is not None:
            changed = bytearray(segments[index])
            for _ in range(self.chance.choice((1, 1, 2, 4, 16))):
                changed[self.chance.randrange(len(changed))] ^= 1 << self.chance.randrange(8)
            segments[index] = bytes(changed)
        return segments

    def with_a_lying_length(self, segments: Segments) -> Segments:
        """The length in a header, or in anything that looks like an item, is another one."""
        index = self._pick(segments)
        if index is not None:
            changed = bytearray(segments[index])
            length = self.chance.choice(_LENGTHS)
            if self.chance.random() < 0.5 or len(changed) < 80:
                changed[2:6] = struct.pack(">L", length)
            else:
                at = self.chance.randrange(68, len(changed) - 4)
                changed[at + 2 : at + 4] = struct.pack(">H", length & 0xFFFF)
            segments[index] = bytes(changed)
        return segments

    def with_a_lying_value_length(self, segments: Segments) -> Segments:
        """The length of a presentation data value is another one."""
        index = self._pick(segments, 0x04)
        if index is not None and len(segments[index]) >= 10:
            changed = bytearray(segments[index])
            changed[6:10] = struct.pack(">L", self.chance.choice(_LENGTHS))
            segments[index] = bytes(changed)
        return segments

    def truncated(self, segments: Segments) -> Segments:
        """Nothing more after some byte."""
        index = self._pick(segments)
        if index is not None:
            segments[index] = segments[index][: self.chance.randrange(len(segments[index]))]
            del segments[index + 1 :]
        return segments

    def reordered(self, segments: Segments) -> Segments:
        """In another order."""
        self.chance.shuffle(segments)
        return segments

    def repeated(self, segments: Segments) -> Segments:
        """One PDU several times: a second request for association, a second release."""
        index = self._pick(segments)
        if index is not None:
            segments[index:index] = [segments[index]] * self.chance.choice((1, 1, 2, 20))
        return segments

    def without_one(self, segments: Segments) -> Segments:
        """One PDU is missing."""
        index = self._pick(segments)
        if index is not None:
            del segments[index]
        return segments

    def with_noise(self, segments: Segments) -> Segments:
        """Random bytes in between."""
        segments.insert(
            self.chance.randrange(len(segments) + 1), self.chance.randbytes(self.chance.choice((1, 5, 6, 7, 80, 5_000)))
        )
        return segments

    def with_another_pdu(self, segments: Segments) -> Segments:
        """A PDU of any type, out of turn."""
        kind = self.chance.randrange(0, 9)
        length = 4 if kind in (3, 5, 6, 7) and self.chance.random() < 0.8 else self.chance.choice((0, 1, 4, 68, 100))
        body = bytes(length) if self.chance.random() < 0.5 else self.chance.randbytes(length)
        segments.insert(self.chance.randrange(len(segments) + 1), pdu.encode_pdu(kind, body))
        return segments

    def in_tiny_values(self, segments: Segments) -> Segments:
        """A P-DATA-TF cut into values of a byte or two, in one PDU or in many."""
        index = self._pick(segments, 0x04)
        if index is not None and len(segments[index]) > 12:
            context_id, control, data = segments[index][10], segments[index][11], segments[index][12 : 12 + 3_000]
            step = self.chance.choice((1, 1, 2, 7))
            pieces = [data[at : at + step] for at in range(0, len(data), step)]
            items = [(context_id, control & 1, piece) for piece in pieces[:-1]] + [(context_id, control, pieces[-1])]
            segments[index : index + 1] = (
                [values(*items)] if self.chance.random() < 0.7 else [values(item) for item in items[:500]]
            )
        return segments

    def on_another_context(self, segments: Segments) -> Segments:
        """A message, or a part of it, on a context that was not agreed."""
        context_id = self.chance.choice((0, 2, 5, 7, 99, 255))
        everywhere = self.chance.random() < 0.5
        for index, segment in enumerate(segments):
            if segment[:1] == b"\x04" and len(segment) > 10 and (everywhere or self.chance.random() < 0.3):
                segments[index] = segment[:10] + bytes((context_id,)) + segment[11:]
        return segments

    def with_empty_values(self, segments: Segments) -> Segments:
        """Presentation data values without data, without a header, or none at all."""
        body = self.chance.choice(
            (
                b"",
                struct.pack(">L", 0),
                struct.pack(">LB", 1, 1),
                struct.pack(">LBB", 2, 1, self.chance.randrange(256)),
                struct.pack(">LBB", 2, 1, 1) * 300,
                struct.pack(">LBB", 2, 1, 0) * 300,
                struct.pack(">LB", 1, 1) * 300,
            )
        )
        segments.insert(self.chance.randrange(len(segments) + 1), pdu.encode_pdu(0x04, body))
        return segments

    def with_junk_after_it(self, segments: Segments) -> Segments:
        """More bytes in a PDU than what is in it needs."""
        index = self._pick(segments)
        if index is not None:
            longer = segments[index] + self.chance.randbytes(self.chance.choice((1, 4, 30)))
            segments[index] = longer[:2] + struct.pack(">L", max(0, len(longer) - 6)) + longer[6:]
        return segments

    def with_another_command(self, segments: Segments) -> Segments:
        """A command set with elements missing, twice, of the wrong kind, or of another message; instead of one or before it."""
        index = self._pick(segments, 0x04)
        if index is None or len(segments[index]) < 20:
            return segments
        context_id = segments[index][10]
        encoded = self.command(segments[index][12:])
        control = self.chance.choice((3, 3, 3, 3, 1, 0, 2, 0x83))
        changed = [values((context_id, control, encoded))]
        if self.chance.random() < 0.4:
            changed.append(
                values((context_id, self.chance.choice((2, 2, 0)), self.chance.randbytes(self.chance.choice((0, 2, 300)))))
            )
        segments[index : index + self.chance.choice((0, 1))] = changed
        return segments

    def command(self, encoded: bytes) -> bytes:
        """A command set that is none, or that says nonsense, made from one that is."""
        elements = []
        at = 0
        while at + 8 <= len(encoded):
            group, element, length = struct.unpack_from("<HHL", encoded, at)
            if at + 8 + length > len(encoded):
                break
            elements.append((group, element, encoded[at + 8 : at + 8 + length]))
            at += 8 + length
        for _ in range(self.chance.choice((1, 1, 2, 5))):
            self._change(elements)
        body = b"".join(
            struct.pack("<HHL", group, element, self._length(value)) + value
            for group, element, value in elements
            if element or group
        )
        return struct.pack("<HHLL", 0, 0, 4, len(body)) + body if self.chance.random() < 0.8 else body

    def _length(self, value: bytes) -> int:
        return len(value) if self.chance.random() < 0.99 else self.chance.choice(_LENGTHS)

    def _change(self, elements: list[tuple[int, int, bytes]]) -> None:
        chance = self.chance
        if not elements:
            return
        index = chance.randrange(len(elements))
        group, element, _ = elements[index]
        match chance.randrange(8):
            case 0:
                del elements[index]
            case 1:
                elements.insert(index, elements[index])
            case 2:
                elements[index] = (group, element, chance.randbytes(chance.choice((0, 1, 2, 3, 4, 8, 64))))
            case 3:
                elements[index] = (group, element, chance.choice(_TEXTS))
            case 4:
                elements[:] = [(g, e, struct.pack("<H", chance.choice(_FIELDS)) if e == 0x0100 else v) for g, e, v in elements]
            case 5:
                elements[:] = [
                    (g, e, struct.pack("<H", chance.choice((0x0101, 0, 1, 0x0102))) if e == 0x0800 else v)
                    for g, e, v in elements
                ]
            case 6:
                extra = chance.choice(
                    ((0x0010, 0x0010), (0x0000, 0x1005), (0x0000, 0x0901), (0x7FE0, 0x0010), (0xFFFE, 0xE000))
                )
                elements.append((*extra, chance.randbytes(chance.choice((0, 4, 6)))))
            case 7:
                chance.shuffle(elements)
