"""What is to be retrieved from whom: by keys, or by the matches of an earlier ``find --json``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from asyncdicom.association.query import LEVELS, UNIQUE_KEYS, Level, Query
from asyncdicom.cli.ending import refuse
from asyncdicom.cli.keys import describe, parse_keys, tag_of
from asyncdicom.cli.options import Retrieval
from asyncdicom.modality import Modality

STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Task:
    """One query to one archive."""

    query: Query
    target: Modality

    @property
    def what(self) -> str:
        """What is retrieved, as it could be typed."""
        return describe(self.query.keys)


@dataclass
class Plan:
    """What is to be done.

    :ivar wrong: what is wrong with lines of the matches, each with its number
    """

    tasks: list[Task] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def plan(operation: str, retrieval: Retrieval, targets: Sequence[Modality]) -> Plan:
    """Make a plan. Reads the matches, and so may block.

    :param operation: what the command is called, for its messages
    :param targets: the archives that SOURCE names
    :raises Failure: when keys and matches are both given or both missing, or the matches cannot be read
    """
    model = retrieval.model or ("patient" if retrieval.level == "patient" else "study")
    unique = UNIQUE_KEYS[retrieval.level]
    # Raises for a level that the model has not, before anything is read.
    empty = Query(level=retrieval.level, model=model)
    if retrieval.from_ is None:
        keys = parse_keys(retrieval.key)
        if not keys.get(unique):
            refuse(f"{operation}: say what, with -k {unique}=... at level {retrieval.level}, or with --from matches.ndjson")
        query = Query(level=retrieval.level, keys=keys, model=model)
        return Plan([Task(query, target) for target in targets])
    if retrieval.key:
        refuse(f"{operation}: -k and --from: choose one")
    if retrieval.from_ == STANDARD_INPUT:
        return _from_lines(sys.stdin, empty, targets)
    try:
        with Path(retrieval.from_).open(encoding="utf-8") as lines:
            return _from_lines(lines, empty, targets)
    except OSError as error:
        refuse(f"--from {retrieval.from_}: cannot be read: {error.strerror}")


def _from_lines(lines: TextIO, query: Query, targets: Sequence[Modality]) -> Plan:
    plan = Plan()
    known: dict[tuple[str, ...], None] = {}
    try:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                found = _tasks_of(line, query, targets)
            except ValueError as error:
                plan.wrong.append(f"line {number}: {error}")
                continue
            for task in found:
                # Rows of a deeper level name the same study again and again.
                key = (task.target.name, *map(str, task.query.keys.values()))
                if key not in known:
                    known[key] = None
                    plan.tasks.append(task)
    except UnicodeDecodeError as error:
        refuse(f"the matches are not UTF-8 at byte {error.start}: write them with find --json")
    return plan


def _tasks_of(line: str, query: Query, targets: Sequence[Modality]) -> list[Task]:
    """The tasks that a line asks for.

    :raises ValueError: when it is not a match, with why; never with its content
    """
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError("not JSON") from None
    if not isinstance(row, dict):
        raise ValueError("not a DICOM JSON model object")
    if "_summary" in row:
        return []
    keys = {keyword: value for keyword in _keywords(query) if (value := _value(row, keyword))}
    unique = UNIQUE_KEYS[query.level]
    if unique not in keys:
        raise ValueError(f"it has no {unique} ({tag_of(unique)}), which names what to retrieve at level {query.level}")
    asked = Query(level=query.level, keys=keys, model=query.model)
    return [Task(asked, target) for target in _sources(row.get("_source"), targets)]


def _keywords(query: Query) -> Iterable[str]:
    """The unique keys down to the level (PS3.4 section C.4.2.2.1); the study root model has no patient."""
    levels: tuple[Level, ...] = LEVELS[: LEVELS.index(query.level) + 1]
    return (UNIQUE_KEYS[level] for level in levels if level != "patient" or query.model == "patient")


def _value(row: Mapping[str, Any], keyword: str) -> str | None:
    element = row.get(tag_of(keyword))
    values = element.get("Value") if isinstance(element, dict) else None
    value = values[0] if isinstance(values, list) and len(values) == 1 else None
    return value if isinstance(value, str) else None


def _sources(named: object, targets: Sequence[Modality]) -> Sequence[Modality]:
    # With one archive there is nothing to choose: it is asked, whoever told of the match.
    if len(targets) == 1 or named is None:
        return targets
    names = named if isinstance(named, list) else []
    # A match that several archives gave is retrieved once.
    chosen = [target for name in names for target in targets if target.name == name][:1]
    if not chosen:
        raise ValueError("its _source names none of the archives that SOURCE names")
    return chosen
