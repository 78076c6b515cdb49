"""Where modalities come from: the tables of the configuration that speak of them, and CSV files.

Every mistake is found in one pass and reported together: a person who repairs a file wants the whole list.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from asyncdicom.errors import ConfigurationError, ConfigurationErrors
from asyncdicom.fleet.expectations import ArrivalsTable, Dates, OptionalArrivals
from asyncdicom.fleet.tables import (
    MISSING,
    ExistingFile,
    Seconds,
    Table,
    Texts,
    mistake,
    read_toml,
    unknown_key,
    validate,
)
from asyncdicom.modality import TLS, Engine, Limits, Modality, QuietHours, Timeouts, UserIdentity, check_ae_title

CSV_COLUMNS = ("name", "ae_title", "host", "port", "groups")
# The tables of the configuration that an inventory leaves to the service.
SERVICE_TABLES = ("scp", "archive", "events", "sweep", "web")


def _ae_title(value: str) -> str:
    try:
        return check_ae_title(value)
    except ConfigurationError as error:
        raise mistake(error.remedy) from None


def _optional_ae_title(value: str) -> str | None:
    return _ae_title(value) if value.strip() else None


def _name(value: str) -> str:
    # It becomes a target, a label, a piece of a URL and a cell of a page.
    if not value or len(value) > 64 or not value.isprintable() or value != value.strip() or set(value) & set("@/?#%\\"):
        raise mistake(r"1 to 64 printable characters without @ / ? # % \ and without spaces at the ends")
    return value


def _group(value: str) -> str:
    if not re.fullmatch(r"[\w.+-]{1,64}", value):
        raise mistake("a group is 1 to 64 letters, digits, and . _ + -")
    if value == "all":
        raise mistake("@all means every modality already: use another name")
    return value


def _host(value: str) -> str:
    if not value or len(value) > 253 or not value.isprintable() or any(character in " /@\\" for character in value):
        raise mistake("a host name or an address, without port")
    if value.startswith("["):
        raise mistake("an IPv6 address without brackets")
    return value


def _optional_text(value: str) -> str | None:
    return value or None


def _quiet_hours(value: str) -> str:
    try:
        QuietHours.parse(value)
    except ConfigurationError as error:
        raise mistake(error.remedy) from None
    return value


def _deadline(value: float) -> float | None:
    return value or None


AETitle = Annotated[str, AfterValidator(_ae_title)]
Host = Annotated[str, AfterValidator(_host)]


class AETable(Table):
    """``[ae]``: who we are."""

    title: AETitle = Field(
        default="ASYNCDICOM", description="an AE title: 1 to 16 characters, printable ASCII without backslash"
    )


_SECONDS = "a number of seconds above 0, such as 5.0"


class TimeoutsTable(Table):
    """Seconds for each phase; what is absent keeps its default."""

    resolve: Seconds | None = Field(default=None, description=_SECONDS)
    connect: Seconds | None = Field(default=None, description=_SECONDS)
    associate: Seconds | None = Field(default=None, description=_SECONDS)
    operation: Seconds | None = Field(default=None, description=_SECONDS)
    release: Seconds | None = Field(default=None, description=_SECONDS)
    move: Seconds | None = Field(default=None, description=_SECONDS)

    def over(self, defaults: Timeouts) -> Timeouts:
        """These timeouts, and the given ones where they are silent."""
        return Timeouts(**{**asdict(defaults), **self.model_dump(exclude_none=True)})


class BreakerTable(Table):
    """When to leave a modality alone."""

    failures: int = Field(default=5, ge=0, description="a number of failures in a row; 0 for never")
    open_for: Seconds = Field(default=60.0, description=_SECONDS)


class FleetTable(Table):
    """``[fleet]``: how we ask."""

    concurrency: int = Field(default=64, ge=1, le=10_000, description="a number of associations at once from 1 to 10000")
    per_modality: int = Field(default=1, ge=1, le=1_000, description="a number of associations at once from 1 to 1000")
    deadline: Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(_deadline)] | None = Field(
        default=10.0, description="seconds for a whole run, such as 10.0; 0 for none"
    )
    retries: int = Field(default=0, ge=0, le=10, description="a number of further attempts from 0 to 10")
    breaker: BreakerTable = Field(default=BreakerTable(), description="a table such as { failures = 5, open_for = 60.0 }")
    timeouts: TimeoutsTable = Field(default=TimeoutsTable(), description="a table such as { connect = 3.0, operation = 10.0 }")


class PeerTLSTable(Table):
    """TLS towards a modality, which is always verified."""

    ca: ExistingFile = Field(default=None, description="a file of PEM certificates; empty for those of the system")
    certificate: ExistingFile = Field(default=None, description="a file with our PEM certificate chain")
    key: ExistingFile = Field(default=None, description="a file with its private key")
    server_name: Annotated[str | None, AfterValidator(_optional_text)] = Field(
        default=None, description="the name to verify instead of the host"
    )

    def build(self) -> TLS:
        """As the associations take it."""
        return TLS(self.ca, self.certificate, self.key, self.server_name)


class UserIdentityTable(Table):
    """User identity negotiation (PS3.7 D.3.3.7); secrets come from files or the environment."""

    kind: Literal["username", "username+passcode", "kerberos", "saml", "jwt"] = Field(
        description='"username", "username+passcode", "kerberos", "saml" or "jwt"'
    )
    username: str = Field(default="", description="the user name, for the kinds that begin with username")
    passcode_file: ExistingFile = Field(default=None, description="a file with the passcode")
    passcode_env: str = Field(default="", description="the environment variable with the passcode")
    token_file: ExistingFile = Field(default=None, description="a file with the ticket, assertion or token")
    token_env: str = Field(default="", description="the environment variable with the ticket, assertion or token")
    response: bool = Field(default=False, description="true asks the peer to confirm")

    def build(self, path: str) -> UserIdentity:
        """Read the secrets.

        :param path: where the table stands, for the message
        :raises ConfigurationError: when something is missing
        """
        if self.kind in ("kerberos", "saml", "jwt"):
            return UserIdentity(self.kind, self._secret("token", path), response=self.response)
        if not self.username:
            raise ConfigurationError(f"{path}.username", MISSING, f'the kind "{self.kind}" needs a user name')
        passcode = b"" if self.kind == "username" else self._secret("passcode", path)
        return UserIdentity(self.kind, self.username.encode(), passcode, self.response)

    def _secret(self, what: str, path: str) -> bytes:
        file: Path | None = getattr(self, f"{what}_file")
        variable: str = getattr(self, f"{what}_env")
        if (file is None) == (not variable):
            raise ConfigurationError(f"{path}.{what}_file", MISSING, f"give either {what}_file or {what}_env")
        if file is not None:
            try:
                secret = file.read_bytes()
            except OSError as error:
                raise ConfigurationError(f"{path}.{what}_file", str(file), f"cannot be read: {error.strerror}") from None
            # A ticket is binary; text ends with the newline that editors add.
            secret = secret if self.kind == "kerberos" else secret.rstrip(b"\r\n")
        else:
            secret = os.environ.get(variable, "").encode()
        if not secret:
            raise ConfigurationError(f"{path}.{what}_{'file' if file else 'env'}", str(file or variable), "nothing is in it")
        return secret


class QuirksTable(Table):
    """What a device cannot do."""

    one_operation_per_association: bool = Field(default=False, description="true or false")
    probe_store: bool = Field(default=False, description="true or false")


class ModalitiesTable(Table):
    """``[modalities]``: files with more of them, and what holds for all."""

    files: Texts = Field(default=(), description='an array of CSV files or patterns, such as ["inventory/*.csv"]')
    arrivals: OptionalArrivals = Field(default=None, description='"learn" or "off", or a table such as { within = 86400.0 }')
    holidays: Dates = Field(default=(), description="an array of dates, such as [2026-12-25, 2026-12-26]")


class ModalityTable(Table):
    """``[[modality]]``: one device."""

    name: Annotated[str, AfterValidator(_name)] = Field(description='what you call it, such as "ct1"')
    ae_title: AETitle = Field(description='its AE title, such as "CT1": 1 to 16 characters')
    host: Host = Field(description='its host name or address, such as "10.1.2.3"')
    port: int = Field(default=104, ge=1, le=65_535, description="a TCP port from 1 to 65535")
    calling_ae_title: Annotated[str | None, AfterValidator(_optional_ae_title)] = Field(
        default=None, description="an AE title of 1 to 16 characters; empty for that of [ae]"
    )
    groups: Annotated[tuple[Annotated[str, AfterValidator(_group)], ...], Field(strict=False)] = Field(
        default=(), description='an array of names, such as ["scanners"]'
    )
    timeouts: TimeoutsTable = Field(default=TimeoutsTable(), description="a table such as { connect = 3.0, operation = 10.0 }")
    per_modality: int | None = Field(
        default=None, ge=1, le=1_000, description="a number of associations at once from 1 to 1000"
    )
    engine: Engine | None = Field(default=None, description='"native" or "pynetdicom"')
    tls: PeerTLSTable | None = Field(default=None, description='a table such as { ca = "tls/ca.pem" }')
    user_identity: UserIdentityTable | None = Field(
        default=None, description='a table such as { kind = "username+passcode", username = "...", passcode_file = "..." }'
    )
    quiet_hours: Annotated[tuple[Annotated[str, AfterValidator(_quiet_hours)], ...], Field(strict=False)] = Field(
        default=(), description='an array of times of day, such as ["22:00-06:00"]'
    )
    quirks: QuirksTable = Field(default=QuirksTable(), description="a table such as { one_operation_per_association = true }")
    arrivals: OptionalArrivals = Field(
        default=None, description='"learn", "off", or a table such as { within = 3600.0, hours = "Mon-Fri 07:00-18:00" }'
    )

    def build(self, path: str, fleet: FleetTable, common: ModalitiesTable) -> Modality:
        """As the fleet takes it.

        :param path: where the table stands, for the message
        :param fleet: the defaults
        :param common: what holds for all of them
        :raises ConfigurationError: when something does not go together
        """
        try:
            return Modality(
                name=self.name,
                ae_title=self.ae_title,
                host=self.host,
                port=self.port,
                calling_ae_title=self.calling_ae_title,
                groups=tuple(dict.fromkeys(self.groups)),
                timeouts=self.timeouts.over(fleet.timeouts.over(Timeouts())),
                limits=Limits(per_modality=self.per_modality or fleet.per_modality),
                tls=self.tls.build() if self.tls else None,
                user_identity=self.user_identity.build(f"{path}.user_identity") if self.user_identity else None,
                engine=self.engine,
                one_operation_per_association=self.quirks.one_operation_per_association,
                probe_store=self.quirks.probe_store,
                quiet_hours=tuple(QuietHours.parse(hours) for hours in self.quiet_hours),
                arrivals=(self.arrivals or common.arrivals or ArrivalsTable()).build(common.holidays),
            )
        except ConfigurationError as error:
            where = error.path if error.path.startswith(path) else f"{path}.{error.path}"
            raise ConfigurationError(where, error.value or MISSING, error.remedy) from None


class InventoryTables(Table):
    """The tables that speak of modalities."""

    ae: AETable = Field(default=AETable(), description="a table: [ae]")
    fleet: FleetTable = Field(default=FleetTable(), description="a table: [fleet]")
    modality: Annotated[tuple[ModalityTable, ...], Field(strict=False)] = Field(
        default=(), description="an array of tables, [[modality]] with two brackets"
    )
    modalities: ModalitiesTable = Field(default=ModalitiesTable(), description="a table: [modalities]")


@dataclass(frozen=True, slots=True)
class Inventory:
    """What a file says about the fleet.

    :ivar modalities: in the order of the file, those of CSV files last
    :ivar calling_ae_title: how we introduce ourselves by default
    :ivar fleet: limits and timeouts
    """

    modalities: tuple[Modality, ...]
    calling_ae_title: str
    fleet: FleetTable

    def __iter__(self) -> Iterator[Modality]:
        return iter(self.modalities)

    def __len__(self) -> int:
        return len(self.modalities)


@dataclass(frozen=True, slots=True)
class Entry:
    """One modality as it stands in a file.

    :ivar path: where (``modality[1]``, ``inventory/a.csv:3``)
    :ivar name: its name as written, None when there is none
    :ivar table: None when it has mistakes
    """

    path: str
    name: str | None
    groups: tuple[str, ...]
    table: ModalityTable | None


def load_inventory(path: str | os.PathLike[str]) -> Inventory:
    """Read the modalities of a configuration or of a CSV file.

    :param path: a TOML file, or one whose name ends in ``.csv``
    :raises ConfigurationErrors: with every mistake
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        raw: dict[str, Any] = {"modalities": {"files": [str(path.absolute())]}}
    else:
        raw = read_toml(path)
    known = {*InventoryTables.model_fields, *SERVICE_TABLES}
    errors = [unknown_key(key, value, known) for key, value in raw.items() if key not in known]
    tables, found = validate(InventoryTables, {k: v for k, v in raw.items() if k in InventoryTables.model_fields}, path.parent)
    errors += found
    entries, found = list_entries(raw, tables, path.parent)
    modalities, unbuilt = build_modalities(entries, tables)
    errors += found + unbuilt
    if errors or tables is None:
        raise ConfigurationErrors(errors)
    return Inventory(modalities, tables.ae.title, tables.fleet)


def list_entries(
    raw: Mapping[str, Any], tables: InventoryTables | None, base: Path
) -> tuple[list[Entry], list[ConfigurationError]]:
    """Bring together the modalities of the tables and of the CSV files, and find names that are there twice.

    :param raw: as it was read: names are compared also where other keys are wrong
    :param tables: None when there are mistakes in them, which are known by then
    """
    entries: list[Entry] = []
    written = raw.get("modality", ())
    for index, item in enumerate(written if isinstance(written, list) else ()):
        fields = item if isinstance(item, dict) else {}
        table = tables.modality[index] if tables else validate(ModalityTable, fields, base)[0]
        groups = fields.get("groups")
        name = fields.get("name") if isinstance(fields.get("name"), str) else None
        known = tuple(group for group in groups if isinstance(group, str)) if isinstance(groups, list) else ()
        entries.append(Entry(f"modality[{index}]", name, known, table))
    errors: list[ConfigurationError] = []
    files = raw.get("modalities", {})
    patterns = files.get("files", ()) if isinstance(files, dict) else ()
    for index, pattern in enumerate(patterns if isinstance(patterns, list) else ()):
        if not isinstance(pattern, str):
            continue
        found = sorted(_matching(base, pattern))
        if not found:
            remedy = "no file matches; relative patterns begin at the configuration file"
            errors.append(ConfigurationError(f"modalities.files[{index}]", pattern, remedy))
        for file in found:
            label = str(file.relative_to(base)) if file.is_relative_to(base) else str(file)
            rows, wrong = _read_csv(file, label)
            entries += rows
            errors += wrong
    return entries, errors + _duplicates(entries)


def build_modalities(
    entries: Iterable[Entry], tables: InventoryTables | None
) -> tuple[tuple[Modality, ...], list[ConfigurationError]]:
    """Make modalities of the entries that have no mistakes.

    :param tables: with the defaults; None when there are mistakes in them, which are known by then
    """
    tables = tables or InventoryTables()
    modalities: list[Modality] = []
    errors: list[ConfigurationError] = []
    for entry in entries:
        if entry.table is not None:
            try:
                modalities.append(entry.table.build(entry.path, tables.fleet, tables.modalities))
            except ConfigurationError as error:
                errors.append(error)
    return tuple(modalities), errors


def _matching(base: Path, pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    root = Path(path.anchor) if path.is_absolute() else base
    relative = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
    return (file for file in root.glob(relative) if file.is_file())


def _duplicates(entries: Iterable[Entry]) -> list[ConfigurationError]:
    first: dict[str, Entry] = {}
    errors = []
    for entry in entries:
        if entry.name is None:
            continue
        earlier = first.setdefault(entry.name, entry)
        if earlier is not entry:
            separator = " " if ":" in entry.path else "."
            remedy = f"{earlier.path} has this name already: names are unique"
            errors.append(ConfigurationError(f"{entry.path}{separator}name", entry.name, remedy))
    return errors


def _read_csv(file: Path, label: str) -> tuple[list[Entry], list[ConfigurationError]]:
    try:
        # Spreadsheets write a byte order mark.
        with file.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.reader(stream, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8" if isinstance(error, ValueError) else str(error)
        return [], [ConfigurationError("", "", f"{label}: cannot be read: {why}")]
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    wrong = [unknown_key(f"{label}:1 {cell}", cell, CSV_COLUMNS) for cell in header if cell not in CSV_COLUMNS]
    missing = [column for column in CSV_COLUMNS[:3] if column not in header]
    if wrong or missing or len(set(header)) != len(header):
        remedy = f"{label}:1: the first line names the columns: {','.join(CSV_COLUMNS)}"
        return [], wrong or [ConfigurationError("", "", remedy)]
    entries: list[Entry] = []
    errors: list[ConfigurationError] = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        path = f"{label}:{number}"
        if len(row) > len(header):
            errors.append(ConfigurationError("", "", f"{path}: {len(row)} cells under {len(header)} columns"))
            continue
        cells: dict[str, Any] = {column: cell.strip() for column, cell in zip(header, row, strict=False) if cell.strip()}
        groups = tuple(group for group in re.split(r"[\s;]+", cells.pop("groups", "")) if group)
        port = cells.get("port")
        if isinstance(port, str) and re.fullmatch(r"[0-9]{1,9}", port):
            cells["port"] = int(port)
        table, found = validate(ModalityTable, {**cells, "groups": groups}, file.parent)
        errors += [ConfigurationError(f"{path} {error.path}", error.value, error.remedy) for error in found]
        entries.append(Entry(path, cells.get("name"), groups, table))
    return entries, errors
