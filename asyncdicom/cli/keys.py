"""Keys as they are typed, ``-k PatientID=123``, and the query that they make."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, keyword_dict, keyword_for_tag, tag_for_keyword
from pydicom.tag import Tag

from asyncdicom.association.query import Level, Model, Query
from asyncdicom.cli.ending import refuse


@dataclass(frozen=True)
class Wanted:
    """A query as it is typed.

    :ivar keys: each ``KEYWORD=VALUE``, or ``KEYWORD`` for universal matching
    :ivar level: None for the study, or the patient's where the model has one
    :ivar model: None for the one that has the level
    """

    keys: Sequence[str]
    level: Level | None = None
    model: Model | None = None
    relational: bool = False
    fuzzy: bool = False
    datetime: bool = False
    timezone: bool = False

    def query(self) -> Query:
        """Make the query.

        :raises Failure: when a key is not one
        :raises ConfigurationError: when level, model and keys do not go together
        """
        level = self.level or "study"
        return Query(
            level=level,
            keys=parse_keys(self.keys),
            model=self.model or ("patient" if level == "patient" else "study"),
            relational=self.relational,
            fuzzy=self.fuzzy,
            datetime=self.datetime,
            timezone=self.timezone,
        )


_INTEGERS = frozenset(("SL", "SS", "SV", "UL", "US", "UV"))
_FLOATS = frozenset(("FD", "FL"))

Value = str | int | float | list[int] | list[float]


def parse_keys(keys: Sequence[str]) -> dict[str, Value]:
    """Return keyword to value; a tag becomes its keyword where it has one.

    :raises Failure: when a key is not one, or is there twice
    """
    parsed: dict[str, Value] = {}
    for key in keys:
        keyword, _, value = key.partition("=")
        name = _keyword_of(keyword.strip())
        if name in parsed:
            refuse(f"-k {name} is there twice: several values of one key are separated by a backslash")
        parsed[name] = _value_of(name, value)
    return parsed


def tag_of(keyword: str) -> str:
    """Return the tag of a keyword, or of a tag, as the DICOM JSON model writes it."""
    tag = tag_for_keyword(keyword)
    return f"{int(keyword, 16) if tag is None else tag:08X}"


def _keyword_of(keyword: str) -> str:
    if tag_for_keyword(keyword) is not None:
        return keyword
    digits = keyword.replace(",", "")
    try:
        if len(digits) == 8:
            return keyword_for_tag(Tag(int(digits, 16))) or digits.upper()
    except ValueError:
        # Not a tag either: said below.
        digits = ""
    near = difflib.get_close_matches(keyword, keyword_dict, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else "write a keyword of PS3.6 such as PatientID, or a tag such as 0010,0020"
    refuse(f"-k {keyword}: no such attribute; {hint}")


def _value_of(keyword: str, text: str) -> Value:
    """Text as its attribute takes it: the VRs of binary numbers are the only ones that are not text."""
    tag = tag_for_keyword(keyword)
    vr = dictionary_VR(tag).partition(" ")[0] if tag is not None else "UN"
    if not text or vr not in _INTEGERS | _FLOATS:
        return text
    try:
        numbers = [int(part) if vr in _INTEGERS else float(part) for part in text.split("\\")]
    except ValueError:
        kind = "an integer" if vr in _INTEGERS else "a number"
        refuse(f"-k {keyword}={text}: {keyword} is matched with {kind}")
    return numbers[0] if len(numbers) == 1 else numbers


def describe(keys: Mapping[str, object]) -> str:
    """Keys as they are typed."""
    return " ".join(f"{keyword}={value}" for keyword, value in keys.items())
