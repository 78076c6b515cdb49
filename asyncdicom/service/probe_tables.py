"""``[[probe]]``: probe modules of a configuration, and what goes together in them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from asyncdicom.errors import ConfigurationError, ConfigurationErrors
from asyncdicom.fleet.inventory import OptionalAETitle
from asyncdicom.fleet.tables import Seconds, Table, Texts, read_toml, shown, validate

if TYPE_CHECKING:
    from asyncdicom.monitor.modules import ProbeModule

_BUILT_IN = ("echo", "find", "worklist", "store")
_QUERIES = ("find", "worklist")
# Of what each key speaks, where not every operation has it.
_ONLY_FOR: dict[str, tuple[str, ...]] = {"level": ("find",), "keys": _QUERIES, "min_matches": _QUERIES}
# A sweep has one association for each modality, and its outcome is that of the query.
_UNUSED_BY_SWEEPS = {"min_matches", "require_contexts"}


class ProbeTable(Table):
    """``[[probe]]``: a probe module."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = Field(
        description="a name for module=NAME: 1 to 64 letters (a to z), digits, and . _ -"
    )
    operation: Literal["echo", "find", "worklist", "store"] = Field(description='"echo", "find", "worklist" or "store"')
    level: Literal["patient", "study", "series", "image"] = Field(
        default="study", description='"patient", "study", "series" or "image"'
    )
    keys: dict[str, str] | None = Field(
        default=None, description='a table of keywords and texts, such as { StudyDate = "today-7", ModalitiesInStudy = "CT" }'
    )
    min_matches: int = Field(default=0, ge=0, le=100_000, description="a number of matches from 0 to 100000")
    timeout: Seconds | None = Field(default=None, description="a number of seconds above 0, such as 5.0")
    calling_ae_title: OptionalAETitle = Field(
        default=None, description="an AE title of 1 to 16 characters; empty for that which the modality is used to"
    )
    require_contexts: Texts = Field(default=(), description='an array of SOP classes, such as ["CTImageStorage"]')

    def build(self) -> ProbeModule:
        """As a probe takes it.

        :raises ConfigurationError: when something is wrong that :func:`mistakes_in` tells of
        """
        # Imported when there is one: it brings the dictionaries of DICOM with it.
        from asyncdicom.monitor.modules import ProbeModule, sop_class_of

        return ProbeModule(
            name=self.name,
            operation=self.operation,
            level=self.level,
            keys=None if self.keys is None else tuple(self.keys.items()),
            min_matches=self.min_matches,
            timeout=self.timeout,
            calling_ae_title=self.calling_ae_title,
            require_contexts=tuple(dict.fromkeys(sop_class_of(text) for text in self.require_contexts)),
        )


class ProbeTables(Table):
    """The part of a configuration that speaks of probes."""

    probe: Annotated[tuple[ProbeTable, ...], Field(strict=False)] = Field(
        default=(), description="an array of tables, [[probe]] with two brackets"
    )


def mistakes_in(tables: Sequence[Mapping[str, Any]]) -> list[ConfigurationError]:
    """Every mistake between the keys of probe modules, and in what they ask.

    It looks at the tables as they were read; a value of the wrong kind is known by then, and passed over.
    """
    errors: list[ConfigurationError] = []
    first: dict[str, int] = {}
    for index, table in enumerate(tables):
        path, name, operation = f"probe[{index}]", table.get("name"), table.get("operation")
        if isinstance(name, str) and name and (earlier := first.setdefault(name, index)) != index:
            errors.append(ConfigurationError(f"{path}.name", name, f"probe[{earlier}] has this name already: names are unique"))
        for key, operations in _ONLY_FOR.items():
            if key in table and isinstance(operation, str) and operation not in operations:
                remedy = f'the operation "{operation}" does not use it: remove it'
                errors.append(ConfigurationError(f"{path}.{key}", shown(f"{path}.{key}", table[key]), remedy))
        errors += _of_dicom(path, table)
    return errors


def mistakes_in_sweeps(sweeps: Sequence[Mapping[str, Any]], probes: Sequence[Mapping[str, Any]]) -> list[ConfigurationError]:
    """Every mistake in the modules that sweeps ask by.

    :param sweeps: as they were read
    :param probes: as they were read
    """
    own = {table["name"]: table for table in probes if isinstance(table.get("name"), str)}
    modules: dict[str, Mapping[str, Any]] = {**{name: {"operation": name} for name in _BUILT_IN}, **own}
    errors: list[ConfigurationError] = []
    for index, sweep in enumerate(sweeps):
        path, name = f"sweep[{index}].module", sweep.get("module")
        if not isinstance(name, str):
            continue
        if "operation" in sweep:
            remedy = "the module says what is asked: remove one of the two"
            errors.append(ConfigurationError(f"sweep[{index}].operation", sweep["operation"], remedy))
        if name not in modules:
            near = difflib.get_close_matches(name, sorted(modules), n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"modules are: {', '.join(modules)}"
            errors.append(ConfigurationError(path, name, f"no [[probe]] has this name; {hint}"))
        elif modules[name].get("operation") == "store":
            remedy = "a sweep stores nothing: write a module that is an echo or a query"
            errors.append(ConfigurationError(path, name, remedy))
        elif modules[name].get("operation") in _QUERIES and (unused := _UNUSED_BY_SWEEPS & set(modules[name])):
            remedy = f"a sweep asks whether queries are answered: write a module without {' and '.join(sorted(unused))}"
            errors.append(ConfigurationError(path, name, remedy))
    return errors


def _of_dicom(path: str, table: Mapping[str, Any]) -> list[ConfigurationError]:
    """What the dictionaries of DICOM say of a table."""
    keys, contexts = table.get("keys"), table.get("require_contexts")
    if not keys and not contexts:
        return []
    from asyncdicom.monitor.modules import MOST_CONTEXTS, check_key, sop_class_of

    errors: list[ConfigurationError] = []
    for keyword, value in keys.items() if isinstance(keys, dict) else ():
        if isinstance(value, str):
            try:
                check_key(keyword, value)
            except ConfigurationError as error:
                where = f"{path}.{error.path}"
                errors.append(ConfigurationError(where, shown(where, error.value), error.remedy))
    names = contexts if isinstance(contexts, list) else []
    for position, text in enumerate(names):
        if isinstance(text, str):
            try:
                sop_class_of(text)
            except ConfigurationError as error:
                errors.append(ConfigurationError(f"{path}.require_contexts[{position}]", text, error.remedy))
    if len(names) > MOST_CONTEXTS:
        remedy = f"at most {MOST_CONTEXTS}: one association proposes 128, and one of them is for the C-ECHO"
        errors.append(ConfigurationError(f"{path}.require_contexts", f"{len(names)} of them", remedy))
    return errors


def read_modules(path: Path | None) -> dict[str, ProbeModule]:
    """The probe modules that there are with a configuration file, without looking at the rest of it. Blocks.

    :param path: None, or an inventory as CSV, for those that are always there
    :raises ConfigurationErrors: with every mistake in them
    """
    from asyncdicom.monitor.modules import modules_with

    if path is None or path.suffix.lower() == ".csv":
        return modules_with(())
    written = read_toml(path).get("probe", [])
    tables, errors = validate(ProbeTables, {"probe": written}, path.parent)
    errors += mistakes_in([item if isinstance(item, dict) else {} for item in written] if isinstance(written, list) else [])
    if errors or tables is None:
        raise ConfigurationErrors(errors)
    return modules_with(table.build() for table in tables.probe)
