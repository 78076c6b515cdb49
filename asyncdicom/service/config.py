"""The configuration file of the service: every table, its defaults, and what goes together.

Reading it imports nothing heavy: ``check-config`` and ``--help`` are asked for more often than the service starts.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field

from asyncdicom.errors import ConfigurationError, ConfigurationErrors
from asyncdicom.fleet.inventory import (
    AETable,
    AETitle,
    Entry,
    FleetTable,
    Host,
    InventoryTables,
    build_modalities,
    list_entries,
)
from asyncdicom.fleet.tables import (
    MISSING,
    ExistingFile,
    OptionalPath,
    Seconds,
    Table,
    Texts,
    mistake,
    read_toml,
    shown,
    validate,
)
from asyncdicom.modality import Engine, Modality, is_loopback
from asyncdicom.scp.access import OperationName
from asyncdicom.scp.identity import Identities
from asyncdicom.scp.users import Users
from asyncdicom.scp.web_token import WebTokens

__all__ = ["Config", "ConfigurationErrors", "check", "load"]

_SIZE = re.compile(r"\s*(\d{1,15}(?:\.\d{1,6})?)\s*([kmgt]?i?b)?\s*", re.IGNORECASE)
_FACTORS = {"k": 1, "m": 2, "g": 3, "t": 4}


def parse_size(value: object) -> object:
    """Return the bytes of ``"5 GiB"``, ``"0 B"``, ``"1.5 MB"``; a plain integer is bytes already."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise mistake('a size with its unit, such as "5 GiB", "16 MiB" or "0 B"')
    unit = (match[2] or "b").lower()
    factor = 1 if unit in ("b", "ib") else (1024 if "i" in unit else 1000) ** _FACTORS[unit[0]]
    return int(float(match[1]) * factor)


def _network(value: str) -> str:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise mistake('a network such as "10.1.0.0/16", or an address such as "10.1.2.3"') from None
    if str(network.network_address) != str(ipaddress.ip_address(value.partition("/")[0])):
        raise mistake(f'the address has bits beyond its prefix: write "{network}"')
    return str(network)


def _layout(value: str) -> str:
    # Imported when it is needed: the archive's own module knows what a layout may be, and brings the archive with it.
    from asyncdicom.archive.layout import Layout

    try:
        Layout(value)
    except ConfigurationError as error:
        raise mistake(error.remedy if error.value == value else f"{error.value}: {error.remedy}") from None
    return value


def _object_store(value: str) -> str | None:
    if value:
        raise mistake("this version keeps instances in a folder: write archive.directory instead")
    return None


def _index(value: str) -> str:
    if value == "none" or (value.startswith("sqlite:") and value != "sqlite:"):
        return value
    if value.startswith("postgres"):
        raise mistake('this version has no PostgreSQL: write "sqlite:data/index.db" or "none"')
    raise mistake('"sqlite:data/index.db" or "none"')


def _sweep_name(value: str) -> str | None:
    if value and not re.fullmatch(r"[\w.-]{1,64}", value):
        raise mistake("1 to 64 letters, digits, and . _ -")
    return value or None


Size = Annotated[int, BeforeValidator(parse_size), Field(ge=0)]
EventName = Literal["instance.stored", "study.complete", "modality.down", "modality.up", "modality.quiet", "modality.heard"]
_SECONDS = "a number of seconds above 0, such as 30.0"
_TRUTH = "true or false"


class ServerTLSTable(Table):
    """``[scp] tls``: TLS towards those who call us."""

    certificate: ExistingFile = Field(default=None, description="a file with our PEM certificate chain")
    key: ExistingFile = Field(default=None, description="a file with its private key")
    client_ca: ExistingFile = Field(default=None, description="a file of PEM certificates that may have signed clients")
    bind: dict[str, Annotated[tuple[AETitle, ...], Field(strict=False)]] = Field(
        default={}, description='a table from certificate subject to AE titles, such as { "ct1.example" = ["CT1"] }'
    )


class ServerIdentityTable(Table):
    """``[scp] user_identity``: who may in by user identity (PS3.7 D.3.3.7)."""

    users_file: ExistingFile = Field(default=None, description="a file with a user name and the hash of its passcode a line")
    required: bool = Field(default=True, description=_TRUTH)
    jwt_key_file: ExistingFile = Field(default=None, description="a file with the public key of who signs JSON web tokens")
    jwt_audience: str = Field(default="", description='whom tokens must be meant for, such as "dicom-archive"')
    jwt_issuer: str = Field(default="", description='whom tokens must come from, such as "https://login.example"')


class AllowTable(Table):
    """``[[scp.allow]]``: who may call us."""

    ae_title: AETitle | None = Field(default=None, description="the calling AE title: 1 to 16 characters")
    networks: Annotated[tuple[Annotated[str, AfterValidator(_network)], ...], Field(strict=False)] = Field(
        default=(), description='an array of networks, such as ["10.1.0.0/16"]'
    )
    operations: Annotated[tuple[OperationName, ...], Field(strict=False)] = Field(
        default=get_args(OperationName), description='an array of "store", "echo", "commit"'
    )


class ScpTable(Table):
    """``[scp]``: the storage SCP."""

    host: Host = Field(default="127.0.0.1", description='an address of this machine, such as "127.0.0.1"')
    port: int = Field(default=11112, ge=0, le=65_535, description="a TCP port from 1 to 65535; 0 takes a free one")
    engine: Engine = Field(default="native", description='"native" or "pynetdicom"')
    accept_any: bool = Field(default=False, description=_TRUTH)
    max_associations: int = Field(default=1_000, ge=1, le=100_000, description="a number from 1 to 100000")
    max_pdu: int = Field(default=131_072, ge=4_096, le=4 << 20, description="bytes from 4096 to 4194304")
    max_object_size: Size = Field(default=4 << 30, gt=0, description='a size such as "4 GiB"')
    require_called_ae_title: bool = Field(default=False, description=_TRUTH)
    artim_timeout: Seconds = Field(default=10.0, description=_SECONDS)
    idle_timeout: Seconds = Field(default=60.0, description=_SECONDS)
    min_rate: int = Field(default=500, ge=0, description="bytes a second, such as 500; 0 for no minimum")
    drain_timeout: float = Field(default=30.0, ge=0, allow_inf_nan=False, description="seconds, such as 30.0")
    promiscuous: bool = Field(default=True, description=_TRUTH)
    tls: ServerTLSTable | None = Field(
        default=None, description='a table such as { certificate = "tls/cert.pem", key = "tls/key.pem" }'
    )
    user_identity: ServerIdentityTable | None = Field(
        default=None, description='a table such as { users_file = "users", required = true }'
    )
    allow: Annotated[tuple[AllowTable, ...], Field(strict=False)] = Field(
        default=(), description="an array of tables, [[scp.allow]] with two brackets"
    )


class ArchiveTable(Table):
    """``[archive]``: what is kept, where, and how safely."""

    directory: OptionalPath = Field(default=None, description='a folder, such as "data/archive"')
    url: Annotated[str | None, AfterValidator(lambda value: value and _object_store(value))] = Field(
        default=None, description='an object store, such as "s3://bucket/prefix"'
    )
    layout: Annotated[str, AfterValidator(_layout)] = Field(
        default="{StudyInstanceUID}/{SeriesInstanceUID}/{SOPInstanceUID}.dcm",
        description='a path of attributes, such as "{StudyInstanceUID}/{SOPInstanceUID}.dcm"',
    )
    durability: Literal["full", "file", "none"] = Field(default="full", description='"full", "file" or "none"')
    duplicates: Literal["keep-first", "replace", "keep-all", "reject"] = Field(
        default="keep-first", description='"keep-first", "replace", "keep-all" or "reject"'
    )
    min_free: Size = Field(default=5 << 30, description='a size such as "5 GiB"')
    index: Annotated[str, AfterValidator(_index)] = Field(
        default="sqlite:data/index.db", description='"sqlite:data/index.db" or "none"'
    )


class EventTargetTable(Table):
    """``[[events.target]]``: who is told."""

    name: Annotated[str | None, AfterValidator(lambda value: value and _sweep_name(value))] = Field(
        default=None, description='what you call it, such as "pipeline"'
    )
    kind: Literal["command", "webhook", "nats"] = Field(description='"command", "webhook" or "nats"')
    on: Annotated[tuple[EventName, ...], Field(strict=False)] = Field(
        default=("study.complete",),
        description="an array of " + ", ".join(f'"{name}"' for name in get_args(EventName)),
    )
    run: Texts = Field(default=(), description='a program and its arguments, such as ["process-study", "{StudyInstanceUID}"]')
    url: str = Field(default="", description='an address, such as "https://pipeline.example/hook"')
    subject: str = Field(default="", description='a NATS subject, such as "dicom.studies"')
    secret_file: ExistingFile = Field(default=None, description="a file with the secret that signs what is sent")
    timeout: Seconds = Field(default=30.0, description=_SECONDS)
    concurrency: int = Field(default=4, ge=1, le=64, description="a number from 1 to 64")


class EventsTable(Table):
    """``[events]``: what happens after an instance is kept."""

    study_complete_after: Seconds = Field(default=60.0, description="seconds without a new instance, such as 60.0")
    target: Annotated[tuple[EventTargetTable, ...], Field(strict=False)] = Field(
        default=(), description="an array of tables, [[events.target]] with two brackets"
    )


class SweepTable(Table):
    """``[[sweep]]``: what is asked of whom, again and again."""

    name: Annotated[str | None, AfterValidator(lambda value: value and _sweep_name(value))] = Field(
        default=None, description="a label for the metrics; the operation and its number by default"
    )
    operation: Literal["echo", "find"] = Field(default="echo", description='"echo" or "find"')
    every: Seconds = Field(default=30.0, description=_SECONDS)
    targets: Texts = Field(default=("@all",), description='an array of names, "@group" or "@all"')


class WebTable(Table):
    """``[web]``: pages, metrics and API."""

    host: Host = Field(default="127.0.0.1", description='an address of this machine, such as "127.0.0.1"')
    port: int = Field(default=8080, ge=0, le=65_535, description="a TCP port from 1 to 65535; 0 takes a free one")
    token_file: ExistingFile = Field(default=None, description="a file with the token that requests must carry")


class ServiceTables(InventoryTables):
    """The whole file."""

    scp: ScpTable | None = Field(default=None, description="a table: [scp]")
    archive: ArchiveTable | None = Field(default=None, description="a table: [archive]")
    events: EventsTable = Field(default=EventsTable(), description="a table: [events]")
    sweep: Annotated[tuple[SweepTable, ...], Field(strict=False)] = Field(
        default=(), description="an array of tables, [[sweep]] with two brackets"
    )
    web: WebTable | None = Field(default=None, description="a table: [web]")


@dataclass(frozen=True, slots=True)
class Config:
    """A configuration without mistakes.

    :ivar path: the file, None when it was made in memory
    :ivar base: where its relative paths begin
    :ivar scp: None for no storage SCP
    :ivar archive: always there when ``scp`` is
    :ivar web: None for no web side
    :ivar modality: every modality, those of CSV files included
    :ivar token: the content of ``web.token_file``
    :ivar event_keys: for each target of events what signs what is sent to it, from its ``secret_file``; None without one
    :ivar identities: the content of the files of ``scp.user_identity``
    """

    path: Path | None
    base: Path
    ae: AETable
    scp: ScpTable | None
    archive: ArchiveTable | None
    events: EventsTable
    fleet: FleetTable
    sweep: tuple[SweepTable, ...]
    web: WebTable | None
    modality: tuple[Modality, ...]
    token: str | None = field(default=None, repr=False)
    event_keys: tuple[bytes | None, ...] = field(default=(), repr=False)
    identities: Identities | None = None

    @property
    def archive_directory(self) -> Path | None:
        """Where instances lie; None without an archive."""
        if self.archive is None:
            return None
        return self.archive.directory or self.base / "data/archive"

    @property
    def index(self) -> str | None:
        """The index with its path made whole: ``sqlite:/...``; None for none."""
        if self.archive is None or self.archive.index == "none":
            return None
        return f"sqlite:{(self.base / self.archive.index.removeprefix('sqlite:')).absolute()}"

    @property
    def sweep_names(self) -> tuple[str, ...]:
        """One name for each sweep: its own, or its operation, numbered where that is taken."""
        return _named([(sweep.name, sweep.operation) for sweep in self.sweep])

    @property
    def event_target_names(self) -> tuple[str, ...]:
        """One name for each target of events: its own, or its kind, numbered where that is taken."""
        return _named([(target.name, target.kind) for target in self.events.target])


def _named(items: Sequence[tuple[str | None, str]]) -> tuple[str, ...]:
    """A name for each: its own, or what it is called otherwise, numbered where that is taken."""
    names: list[str] = []
    taken = {own for own, _ in items}
    for own, otherwise in items:
        candidates = [otherwise, *(f"{otherwise}-{number}" for number in range(2, len(items) + 2))]
        free = (name for name in candidates if name not in names and name not in taken)
        names.append(own or next(free))
    return tuple(names)


def load(path: str | os.PathLike[str]) -> Config:
    """Read a configuration file.

    :raises ConfigurationErrors: with every mistake that is in it
    """
    path = Path(path)
    return check(read_toml(path), path.parent, path)


def check(raw: Mapping[str, Any], base: Path, path: Path | None = None) -> Config:
    """Check what was read from a configuration file.

    :param raw: its tables
    :param base: where relative paths begin
    :param path: the file, if there is one
    :raises ConfigurationErrors: with every mistake that is in it
    """
    tables, errors = validate(ServiceTables, raw, base)
    entries, wrong = list_entries(raw, tables, base)
    errors += wrong
    modalities, wrong = build_modalities(entries, tables)
    errors += wrong + _listeners(raw) + _targets(raw, entries) + _archive(raw) + _names(raw) + _arrivals(raw)
    token, wrong = _token(raw, base)
    errors += wrong
    event_keys, wrong = _events(raw, base)
    errors += wrong
    identities, wrong = _identities(raw, base)
    errors += wrong
    if errors or tables is None:
        raise ConfigurationErrors(errors)
    return Config(
        path=path,
        base=base,
        ae=tables.ae,
        scp=tables.scp,
        archive=tables.archive or (ArchiveTable() if tables.scp else None),
        events=tables.events,
        fleet=tables.fleet,
        sweep=tables.sweep,
        web=tables.web,
        modality=modalities,
        token=token,
        event_keys=event_keys,
        identities=identities,
    )


# What follows looks at the file as it was read, so that it is told also where single keys are wrong. A value of the wrong
# kind is known by then: it is passed over.
def _table(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = raw.get(key)
    return value if isinstance(value, dict) else {}


def _tables(raw: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = raw.get(key)
    return [item if isinstance(item, dict) else {} for item in value] if isinstance(value, list) else []


def _listeners(raw: Mapping[str, Any]) -> list[ConfigurationError]:
    scp, web = _table(raw, "scp"), _table(raw, "web")
    errors = []
    host = scp.get("host", "127.0.0.1")
    if isinstance(host, str) and not is_loopback(host) and not scp.get("allow") and scp.get("accept_any") is not True:
        remedy = "anybody who reaches this address could store: add [[scp.allow]], or write accept_any = true, or 127.0.0.1"
        errors.append(ConfigurationError("scp.host", host, remedy))
    for index, rule in enumerate(_tables(scp, "allow")):
        if not rule.get("ae_title") and not rule.get("networks"):
            errors.append(ConfigurationError(f"scp.allow[{index}]", MISSING, "give ae_title, or networks, or both"))
        if rule.get("operations") and scp.get("accept_any") is True:
            remedy = "with accept_any = true no rule counts, and everybody may do everything: remove one of the two"
            errors.append(ConfigurationError(f"scp.allow[{index}].operations", rule["operations"], remedy))
        if rule.get("operations") == []:
            remedy = "who may do nothing needs no rule: leave the rule out, or name some"
            errors.append(ConfigurationError(f"scp.allow[{index}].operations", [], remedy))
    tls = _table(scp, "tls")
    for one, other in (("certificate", "key"), ("key", "certificate")):
        if tls.get(one) and not tls.get(other):
            errors.append(ConfigurationError(f"scp.tls.{other}", MISSING, "certificate and key go together"))
    if tls and not tls.get("certificate") and (tls.get("client_ca") or tls.get("bind")):
        errors.append(ConfigurationError("scp.tls.certificate", MISSING, "TLS needs a certificate and its key"))
    if tls.get("bind") and not tls.get("client_ca"):
        remedy = "bind compares the certificates of clients: say which authority signs them"
        errors.append(ConfigurationError("scp.tls.client_ca", MISSING, remedy))
    if "scp" in raw and "web" in raw:
        port = web.get("port", 8080)
        if port and port == scp.get("port", 11112) and host == web.get("host", "127.0.0.1"):
            errors.append(ConfigurationError("web.port", port, "scp.port is the same: give each its own"))
    return errors


def _archive(raw: Mapping[str, Any]) -> list[ConfigurationError]:
    archive = _table(raw, "archive")
    if archive.get("directory") and archive.get("url"):
        remedy = "archive.directory is there too: keep one of them"
        return [ConfigurationError("archive.url", shown("archive.url", archive["url"]), remedy)]
    return []


def _arrivals(raw: Mapping[str, Any]) -> list[ConfigurationError]:
    tables = [*_tables(raw, "modality"), _table(raw, "modalities")]
    if "scp" in raw or all(table.get("arrivals", "off") == "off" for table in tables):
        return []
    remedy = "add it: without a storage SCP nothing arrives; or leave out the arrivals of modalities"
    return [ConfigurationError("scp", MISSING, remedy)]


def _events(raw: Mapping[str, Any], base: Path) -> tuple[tuple[bytes | None, ...], list[ConfigurationError]]:
    targets = _tables(_table(raw, "events"), "target")
    if not targets:
        return (), []
    from asyncdicom.service.event_targets import mistakes_in, read_keys

    errors = mistakes_in(targets)
    if "scp" not in raw and "archive" not in raw:
        remedy = "add it: events wait in the index of the archive until they are delivered"
        errors.append(ConfigurationError("archive", MISSING, remedy))
    elif _table(raw, "archive").get("index") == "none":
        remedy = "events wait in the index until they are delivered: give it one, or remove [[events.target]]"
        errors.append(ConfigurationError("archive.index", "none", remedy))
    keys, wrong = read_keys(targets, base)
    return keys, errors + wrong


def _names(raw: Mapping[str, Any]) -> list[ConfigurationError]:
    errors = []
    for prefix, items in (("sweep", _tables(raw, "sweep")), ("events.target", _tables(_table(raw, "events"), "target"))):
        first: dict[str, int] = {}
        for index, item in enumerate(items):
            name = item.get("name")
            if isinstance(name, str) and name and (earlier := first.setdefault(name, index)) != index:
                remedy = f"{prefix}[{earlier}] has this name already: names are unique"
                errors.append(ConfigurationError(f"{prefix}[{index}].name", name, remedy))
    return errors


def _targets(raw: Mapping[str, Any], entries: list[Entry]) -> list[ConfigurationError]:
    names = {entry.name for entry in entries if entry.name}
    groups = {f"@{group}" for entry in entries for group in entry.groups}
    known = names | groups | {"@all"}
    errors = []
    for index, sweep in enumerate(_tables(raw, "sweep")):
        targets = sweep.get("targets", ())
        for position, target in enumerate(targets if isinstance(targets, list) else ()):
            if not isinstance(target, str) or target in known:
                continue
            near = difflib.get_close_matches(target, sorted(known), n=1, cutoff=0.6)
            what = "no modality has this group" if target.startswith("@") else "no modality has this name"
            hint = f"did you mean {near[0]}?" if near else f"groups are: {', '.join(sorted(groups | {'@all'}))}"
            errors.append(ConfigurationError(f"sweep[{index}].targets[{position}]", target, f"{what}; {hint}"))
        if isinstance(targets, list) and not targets:
            errors.append(ConfigurationError(f"sweep[{index}].targets", [], 'nobody would be asked: write ["@all"]'))
    return errors


def _token(raw: Mapping[str, Any], base: Path) -> tuple[str | None, list[ConfigurationError]]:
    written = _table(raw, "web").get("token_file")
    if not isinstance(written, str) or not written or not (base / written).is_file():
        return None, []
    try:
        token = (base / written).read_text("ascii").strip()
    except OSError as error:
        return None, [ConfigurationError("web.token_file", written, f"cannot be read: {error.strerror}")]
    except UnicodeDecodeError:
        return None, [ConfigurationError("web.token_file", written, "a token is ASCII: letters, digits and punctuation")]
    if not token.isprintable() or len(token.split()) != 1:
        return None, [ConfigurationError("web.token_file", written, "the file has to hold one word, the token")]
    return token, []


def _identities(raw: Mapping[str, Any], base: Path) -> tuple[Identities | None, list[ConfigurationError]]:
    prefix = "scp.user_identity"
    table = _table(raw, "scp").get("user_identity")
    if not isinstance(table, dict):
        return None, []
    users: Users | None = None
    tokens: WebTokens | None = None
    errors = []
    if not table.get("users_file") and not table.get("jwt_key_file"):
        remedy = "nobody could prove anything: give users_file, or jwt_key_file, or both"
        errors.append(ConfigurationError(f"{prefix}.users_file", MISSING, remedy))
    said = [key for key in ("jwt_audience", "jwt_issuer") if table.get(key)]
    if said and not table.get("jwt_key_file"):
        remedy = f"{said[0]} is said of tokens: say who signs them"
        errors.append(ConfigurationError(f"{prefix}.jwt_key_file", MISSING, remedy))
    try:
        if (path := _file(table, "users_file", base)) is not None:
            users = Users.read(path, f"{prefix}.users_file")
        if (path := _file(table, "jwt_key_file", base)) is not None:
            audience, issuer = (str(table.get(key) or "") or None for key in ("jwt_audience", "jwt_issuer"))
            tokens = WebTokens.read(path, audience=audience, issuer=issuer, setting=f"{prefix}.jwt_key_file")
    except ConfigurationError as error:
        errors.append(error)
    return Identities(users, tokens, table.get("required", True) is True), errors


def _file(table: Mapping[str, Any], key: str, base: Path) -> Path | None:
    """A file that is named and there; what is wrong with others is known by then."""
    written = table.get(key)
    if not isinstance(written, str) or not written or "\0" in written:
        return None
    path = base / written
    return path if path.is_file() and os.access(path, os.R_OK) else None
