"""Probe modules: each is a question with a name, of the configuration or one of the four that are always there."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Literal, get_args

from pydicom.datadict import dictionary_has_tag, dictionary_VR, keyword_dict, tag_for_keyword
from pydicom.uid import UID_dictionary

from asyncdicom.association.query import Level, Query
from asyncdicom.errors import ConfigurationError
from asyncdicom.modality import Modality, check_ae_title
from asyncdicom.upper_layer import context as uid

ModuleOperation = Literal["echo", "find", "worklist", "store"]
OPERATIONS: tuple[ModuleOperation, ...] = get_args(ModuleOperation)

# That of the C-ECHO is proposed with them.
MOST_CONTEXTS = uid.MAX_CONTEXTS - 1
# A name is a value in URLs, in Prometheus' relabelling and in shells.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_UID = re.compile(r"(?=.{1,64}$)(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))+")
_TODAY = re.compile(r"today(?:([+-])([0-9]{1,4})(?![0-9]))?")
_DATE = r"(?:[0-9]{8}|today(?:[+-][0-9]{1,4}(?![0-9]))?)"
_CLASSES = ("SOP Class", "Meta SOP Class")
# PS3.4 section C.2.2.2.5: one date, or a range that is open at one end at the most.
_DATES = re.compile(rf"{_DATE}?|{_DATE}-{_DATE}?|-{_DATE}")
_DATE_REMEDY = 'write "today", "today-7", "20260131", or a range such as "today-7-today" or "today-7-"'


@dataclass(frozen=True, slots=True)
class ProbeModule:
    """What a probe asks of a modality, and when it has succeeded.

    :ivar name: 1 to 64 ASCII letters, digits, and ``. _ -``
    :ivar operation: ``echo`` is a C-ECHO; the others ask something after it: C-FIND, C-FIND of a worklist, C-STORE
    :ivar level: of a C-FIND
    :ivar keys: of a C-FIND, as pairs of keyword and value; dates may be relative to today. None for a cheap query
    :ivar min_matches: fewer matches than these are a failure
    :ivar timeout: seconds that it may take at the most; None for what the caller has
    :ivar calling_ae_title: how we introduce ourselves; None for what the modality is used to
    :ivar require_contexts: SOP class UIDs for which the modality has to accept a presentation context
    :ivar is_built_in: whether it is one of the four that are always there
    :raises ConfigurationError: when something is wrong, or does not go together
    """

    name: str
    operation: ModuleOperation
    level: Level = "study"
    keys: tuple[tuple[str, str], ...] | None = None
    min_matches: int = 0
    timeout: float | None = None
    calling_ae_title: str | None = None
    require_contexts: tuple[str, ...] = ()
    is_built_in: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigurationError("name", self.name, "1 to 64 letters (a to z), digits, and . _ -")
        if self.operation not in OPERATIONS:
            raise ConfigurationError("operation", self.operation, f"one of {', '.join(OPERATIONS)}")
        if self.calling_ae_title is not None:
            check_ae_title(self.calling_ae_title, "calling_ae_title")
        if len(self.require_contexts) > MOST_CONTEXTS:
            raise ConfigurationError("require_contexts", len(self.require_contexts), f"at most {MOST_CONTEXTS}")
        for keyword, value in self.keys or ():
            check_key(keyword, value)

    @property
    def is_query(self) -> bool:
        """Whether it asks for matches."""
        return self.operation in ("find", "worklist")

    @property
    def limit(self) -> int:
        """Matches after which enough is known, and the peer is stopped."""
        return max(1, self.min_matches)

    def calls(self, modality: Modality) -> Modality:
        """A modality as it is called."""
        return modality if self.calling_ae_title is None else replace(modality, calling_ae_title=self.calling_ae_title)

    def query(self, today: date) -> Query:
        """What a module that is a query asks.

        :param today: what relative dates begin from
        """
        if self.operation == "worklist":
            keys = self.keys or (("ScheduledProcedureStepStartDate", "today"), ("Modality", ""))
            return Query(model="worklist", keys=_on(today, keys))
        keys = self.keys or (("StudyDate", "today"), ("StudyInstanceUID", ""))
        return Query(level=self.level, keys=_on(today, keys), model="patient" if self.level == "patient" else "study")


BUILT_IN: Mapping[str, ProbeModule] = {name: ProbeModule(name, name, is_built_in=True) for name in OPERATIONS}


def modules_with(own: Iterable[ProbeModule]) -> dict[str, ProbeModule]:
    """The modules by their names: those that are always there, and those of a configuration, which may take their place."""
    return {**BUILT_IN, **{module.name: module for module in own}}


def module_named(modules: Mapping[str, ProbeModule], name: str) -> ProbeModule:
    """The module of a name.

    :raises ConfigurationError: when there is none; it names those that there are
    """
    if name not in modules:
        raise ConfigurationError("module", name, f"one of {', '.join(modules)}")
    return modules[name]


def check_key(keyword: str, value: str) -> None:
    """Look at a key of a query.

    :raises ConfigurationError: with the path ``keys.KEYWORD``
    """
    tag = tag_for_keyword(keyword)
    if tag is None:
        near = difflib.get_close_matches(keyword, list(keyword_dict), n=1, cutoff=0.6)
        hint = f"; did you mean {near[0]}?" if near else ", such as StudyDate or ModalitiesInStudy"
        raise ConfigurationError(f"keys.{keyword}", value, f"write a keyword of PS3.6{hint}")
    if _is_date(keyword) and not _DATES.fullmatch(value):
        raise ConfigurationError(f"keys.{keyword}", value, _DATE_REMEDY)


def sop_class_of(text: str) -> str:
    """The SOP class UID of a UID or of a keyword of PS3.6 Annex A, such as ``CTImageStorage``.

    :raises ConfigurationError: when it is neither
    """
    if _UID.fullmatch(text):
        return text
    known = {keyword: known for known, (_, kind, _, _, keyword) in UID_dictionary.items() if keyword and kind in _CLASSES}
    if text in known:
        return known[text]
    near = difflib.get_close_matches(text, list(known), n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]}?" if near else ', such as "CTImageStorage"'
    raise ConfigurationError("require_contexts", text, f"write the UID of a SOP class, or its keyword of PS3.6{hint}")


def _on(today: date, keys: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The keys with their relative dates made whole."""

    def day(match: re.Match[str]) -> str:
        sign, days = match.groups()
        return (today + timedelta(days=int(f"{sign}{days}") if days else 0)).strftime("%Y%m%d")

    return {keyword: _TODAY.sub(day, value) if _is_date(keyword) else value for keyword, value in keys}


def _is_date(keyword: str) -> bool:
    tag = tag_for_keyword(keyword)
    return tag is not None and dictionary_has_tag(tag) and dictionary_VR(tag) == "DA"
