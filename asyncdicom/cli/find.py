"""``asyncdicom find``: what archives and worklists hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from asyncdicom.association.query import Match, Query
from asyncdicom.cli.dicom_json import JSONModel, quote
from asyncdicom.cli.ending import FAILED, OK, ReaderGone, refuse
from asyncdicom.cli.keys import Wanted, tag_of
from asyncdicom.cli.options import Asking, Form
from asyncdicom.cli.output import Output
from asyncdicom.cli.progress import Meter
from asyncdicom.cli.rendering import Column, Kind, Rows, View, as_json, clean, failure_line, kind_of, outcome_fields
from asyncdicom.cli.running import run
from asyncdicom.cli.targets import Asked, choose
from asyncdicom.errors import DatasetError
from asyncdicom.outcome import Outcome, Reason

_SCHEDULED_STEP = "00400100"


@dataclass(frozen=True, slots=True)
class Row:
    """A match on its way out.

    :ivar members: those of its DICOM JSON model object
    """

    members: str
    sources: tuple[str, ...]

    @property
    def attributes(self) -> dict[str, Any]:
        """The object itself; numbers as they were written."""
        attributes: dict[str, Any] = json.loads(f"{{{self.members}}}", parse_float=str, parse_int=str)
        return attributes


def find(targets: Sequence[str], wanted: Wanted, limit: int | None, merge: bool, asking: Asking, form: Form) -> int:
    """Run the command.

    :return: the exit status
    """
    if not targets:
        refuse("find: name at least one TARGET")
    if limit is not None and limit < 1:
        refuse(f"--limit {limit}: write 1 or more")
    kind = kind_of(form)
    query = wanted.query()
    # A value that does not fit its attribute is a mistake of the caller's, found before anybody is asked.
    query.encode("1.2.840.10008.1.2.1")
    asked = choose(asking, targets)
    return run(_Find(asked, query, limit, merge, kind).run)


class _Find:
    def __init__(self, asked: Asked, query: Query, limit: int | None, merge: bool, kind: Kind) -> None:
        self._asked = asked
        self._query = query
        self._limit = limit
        self._merge = merge
        self._kind: Kind = kind
        self._models: dict[str, JSONModel] = {}
        self._written = 0
        self._came = 0
        self._undecodable: dict[str, int] = {}
        self._outcomes: Mapping[str, Outcome] = {}

    async def run(self) -> int:
        view = _view(self._query, several=len(self._asked.targets) > 1)
        async with Output() as output:
            rows = Rows(output, self._kind, view)
            await rows.begin()
            try:
                await self._write(rows)
            except ReaderGone:
                raise
            except BaseException:
                self._conclude(output, rows, interrupted=True)
                raise
            return self._conclude(output, rows, interrupted=False)

    async def _write(self, rows: Rows[Row]) -> None:
        asked = self._asked
        async with Meter("matches", kind=self._kind) as meter, asked.fleet:
            matches = asked.fleet.find(self._query, asked.targets, limit=self._limit, merge=self._merge)
            self._outcomes = matches.outcomes
            async for match in matches:
                self._came += 1
                try:
                    members = self._members(match)
                except DatasetError:
                    for source in match.sources:
                        self._undecodable[source] = self._undecodable.get(source, 0) + 1
                    continue
                self._written += 1
                await rows.add(Row(members, match.sources))
                meter.advance()

    def _members(self, match: Match) -> str:
        model = self._models.get(match.transfer_syntax)
        if model is None:
            model = self._models[match.transfer_syntax] = JSONModel(match.transfer_syntax)
        return model.members(match.encoded)

    def _conclude(self, output: Output, rows: Rows[Row], *, interrupted: bool) -> int:
        """Say what became of whom; return the exit status."""
        rows.end()
        enough = self._limit is not None and self._came >= self._limit
        reached = {modality.name: self._outcomes.get(modality.name) for modality in self._asked.targets}
        failed = [
            outcome
            for outcome in reached.values()
            if outcome is not None and not outcome.ok and not (enough and outcome.reason is Reason.CANCELLED)
        ]
        for outcome in failed:
            output.say(failure_line(outcome))
        for source, count in self._undecodable.items():
            output.say(clean(f"{source}: {count} of its matches could not be decoded, and are left out"))
        fine = not failed and not self._undecodable and not interrupted
        if self._kind == "json":
            summary = {
                "operation": "find",
                "ok": fine,
                "targets": len(reached),
                "succeeded": sum(outcome is not None and outcome.ok for outcome in reached.values()),
                "failed": len(failed),
                "matches": self._written,
                "undecodable": sum(self._undecodable.values()),
                "limit_reached": enough,
                "interrupted": interrupted,
                "modalities": {name: self._told(name, outcome) for name, outcome in reached.items()},
            }
            output.put(as_json({"_summary": summary}))
        elif self._kind != "csv":
            answered = len(reached) - len(failed)
            of = f" from {answered} of {len(reached)} archives" if len(reached) > 1 else ""
            output.say(f"{self._written} match{'' if self._written == 1 else 'es'}{of}{', interrupted' if interrupted else ''}")
        return OK if fine else FAILED

    def _told(self, name: str, outcome: Outcome | None) -> dict[str, Any]:
        if outcome is None:
            # Stopped while it was under way, because enough had come or the caller was interrupted.
            modality = next(modality for modality in self._asked.targets if modality.name == name)
            where = {"ae_title": modality.ae_title, "host": modality.host, "port": modality.port}
            outcome = Outcome(name, "find", Reason.CANCELLED, **where)  # type: ignore[arg-type]
        return {**outcome_fields(outcome), "matches": outcome.matches, "undecodable": self._undecodable.get(name, 0)}


def _view(query: Query, *, several: bool) -> View[Row]:
    columns = dict.fromkeys(query.keys)
    if query.unique_key is not None:
        columns[query.unique_key] = None
    tags = [tag_of(keyword) for keyword in columns]
    sources: dict[tuple[str, ...], str] = {}

    def written(row: Row) -> str:
        source = sources.get(row.sources)
        if source is None:
            source = sources[row.sources] = f'"_source":[{",".join(quote(name) for name in row.sources)}]}}'
        return f"{{{row.members},{source}" if row.members else f"{{{source}"

    def record(row: Row) -> list[str]:
        attributes = row.attributes
        return [text_of(attributes, tag) for tag in tags]

    shown = [Column[Row](keyword, partial(_cell, tag)) for keyword, tag in zip(columns, tags, strict=True)]
    if several:
        shown.append(Column("source", lambda row: ", ".join(row.sources), lambda _: "dim"))
    return View(json=written, header=tuple(columns), record=record, columns=shown)


def _cell(tag: str, row: Row) -> str:
    return text_of(row.attributes, tag)


def text_of(attributes: Mapping[str, Any], tag: str) -> str:
    """The value of an attribute as text: values separated by a backslash, component groups of a person's name by ``=``.

    :param attributes: a DICOM JSON model object; a worklist's keys are looked up in its scheduled step too
    """
    element = attributes.get(tag)
    if element is None:
        steps = attributes.get(_SCHEDULED_STEP, {}).get("Value") or [{}]
        element = steps[0].get(tag, {})
    if "InlineBinary" in element:
        return str(element["InlineBinary"])
    values = element.get("Value", ())
    if element.get("vr") == "SQ":
        return as_json(values) if values else ""
    if element.get("vr") == "PN":
        return "\\".join(_name(value) for value in values)
    return "\\".join("" if value is None else str(value) for value in values)


def _name(groups: Mapping[str, str] | None) -> str:
    if groups is None:
        return ""
    return "=".join(groups.get(name, "") for name in ("Alphabetic", "Ideographic", "Phonetic")).rstrip("=")
