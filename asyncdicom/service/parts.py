"""From the configuration to the parts of the service."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from asyncdicom.archive import Archive
from asyncdicom.errors import ConfigurationError
from asyncdicom.events.command import Command
from asyncdicom.events.contract import Target
from asyncdicom.events.relay import Bell, Relay
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.fleet.limits import Breaker
from asyncdicom.fleet.tables import shown
from asyncdicom.modality import Modality, QuietHours
from asyncdicom.monitor.metrics import Exposed
from asyncdicom.monitor.modules import ProbeModule, modules_with
from asyncdicom.monitor.state import ModalityState
from asyncdicom.monitor.sweep import SweepPlan
from asyncdicom.observe import Observer
from asyncdicom.outcome import Operation
from asyncdicom.scp.access import Access, AllowRule, ServerTLS
from asyncdicom.scp.commitment import StorageCommitment, Whom
from asyncdicom.scp.server import StorageSCP
from asyncdicom.service.config import Config, ScpTable, SweepTable

# What a reload changes; the rest of the file is read when the service starts.
_RELOADED = {"scp": {"allow", "accept_any", "user_identity"}, "web": {"token_file"}}


def make_archive(config: Config, observer: Observer) -> Archive | None:
    """The archive; None without ``[archive]`` and ``[scp]``."""
    if config.archive is None or config.archive_directory is None:
        return None
    return Archive(
        config.archive_directory,
        durability=config.archive.durability,
        layout=config.archive.layout,
        duplicates=config.archive.duplicates,
        min_free=config.archive.min_free,
        index=config.index,
        outbox=any("instance.stored" in target.on for target in config.events.target),
        observer=observer,
    )


def make_commitment(config: Config, archive: Archive | None, whom: Whom, observer: Observer) -> StorageCommitment | None:
    """Storage commitment; None without an index, which tells what is kept."""
    if archive is None or archive.index is None:
        return None
    return StorageCommitment(archive, whom, ae_title=config.ae.title, observer=observer)


def modality_with(config: Config, ae_title: str) -> Modality | None:
    """The first modality that has an AE title."""
    return next((modality for modality in config.modality if modality.ae_title == ae_title), None)


def make_scp(
    config: Config, archive: Archive | None, commitment: StorageCommitment | None, observer: Observer
) -> StorageSCP | None:
    """The storage SCP; None without ``[scp]``."""
    scp = config.scp
    if scp is None:
        return None
    return StorageSCP(
        archive,
        host=scp.host,
        port=scp.port,
        ae_title=config.ae.title,
        engine=scp.engine,
        access=make_access(scp),
        tls=_server_tls(scp),
        max_associations=scp.max_associations,
        max_pdu=scp.max_pdu,
        max_object_size=scp.max_object_size,
        require_called_ae_title=scp.require_called_ae_title,
        artim_timeout=scp.artim_timeout,
        idle_timeout=scp.idle_timeout,
        min_rate=scp.min_rate,
        drain_timeout=scp.drain_timeout,
        promiscuous=scp.promiscuous,
        services=[] if commitment is None else [commitment],
        identities=config.identities,
        observer=observer,
    )


def make_access(scp: ScpTable) -> Access:
    """Who may in."""
    rules = (AllowRule.parse(rule.ae_title, rule.networks, rule.operations) for rule in scp.allow)
    return Access(rules, accept_any=scp.accept_any)


def make_fleet(config: Config, observer: Observer) -> Fleet:
    """The fleet. How many associations each modality may have stands with the modality."""
    fleet = config.fleet
    return Fleet(
        config.modality,
        calling_ae_title=config.ae.title,
        concurrency=fleet.concurrency,
        deadline=fleet.deadline,
        retries=fleet.retries,
        breaker=Breaker(fleet.breaker.failures, fleet.breaker.open_for),
        observer=observer,
    )


def sweep_plans(config: Config) -> tuple[SweepPlan, ...]:
    """The sweeps, each with its name."""
    modules = probe_modules(config)
    return tuple(
        SweepPlan(
            name,
            _operation_of(sweep, modules),
            sweep.every,
            sweep.targets,
            None if sweep.module is None else modules[sweep.module],
            tuple(QuietHours.parse(hours) for hours in sweep.between),
        )
        for name, sweep in zip(config.sweep_names, config.sweep, strict=True)
    )


def _operation_of(sweep: SweepTable, modules: Mapping[str, ProbeModule]) -> Literal["echo", "find"]:
    if sweep.module is None:
        return sweep.operation
    return "find" if modules[sweep.module].is_query else "echo"


def probe_modules(config: Config) -> dict[str, ProbeModule]:
    """The probe modules by their names."""
    return modules_with(table.build() for table in config.probe)


def exposed(config: Config) -> Exposed:
    """What there is to measure."""
    return Exposed(
        modalities=config.modality,
        swept=_swept(config),
        sweeps=config.sweep_names,
        every={plan.name: plan.every for plan in sweep_plans(config)},
        storage=config.scp is not None,
        archive=config.archive_directory,
        event_targets=config.event_target_names,
    )


def make_event_targets(config: Config) -> list[Target]:
    """Those who are told of events.

    :raises ConfigurationError: when one needs a library that is not installed
    """
    targets: list[Target] = []
    for index, (name, target) in enumerate(zip(config.event_target_names, config.events.target, strict=True)):
        settings: dict[str, Any] = {"on": target.on, "timeout": target.timeout, "concurrency": target.concurrency}
        if target.kind == "command":
            targets.append(Command(name, target.run, folder=config.base.absolute(), **settings))
            continue
        try:
            from asyncdicom.events.webhook import Webhook
        except ImportError:
            remedy = "it needs httpx, which is not installed: pip install 'asyncdicom[events]'"
            raise ConfigurationError(f"events.target[{index}].kind", target.kind, remedy) from None
        try:
            targets.append(Webhook(name, target.url, key=config.event_keys[index], **settings))
        except ValueError as error:
            raise ConfigurationError(f"events.target[{index}].url", shown("url", target.url), f"no address: {error}") from error
    return targets


def make_relay(config: Config, archive: Archive | None, bell: Bell, observer: Observer) -> Relay | None:
    """The relay of events; None when nobody is told.

    :raises ConfigurationError: when a target cannot be told
    """
    if not config.events.target or archive is None or archive.index is None:
        return None
    return Relay(
        archive.index,
        make_event_targets(config),
        bell=bell,
        observer=observer,
        study_complete_after=config.events.study_complete_after,
    )


def renew_keys(relay: Relay | None, running: Config, wanted: Config) -> tuple[bytes | None, ...]:
    """Sign with what the secret files hold now, and return it. The targets themselves change with a restart only."""
    names = [(name, target.secret_file) for name, target in zip(running.event_target_names, running.events.target, strict=True)]
    read = {
        (name, target.secret_file): key
        for name, target, key in zip(wanted.event_target_names, wanted.events.target, wanted.event_keys, strict=True)
    }
    keys = tuple(read.get(name, key) for name, key in zip(names, running.event_keys, strict=True))
    if relay is not None:
        relay.sign_with(dict(zip(running.event_target_names, keys, strict=True)))
    return keys


def tell_condition(relay: Relay, state: ModalityState) -> None:
    """Tell the targets of events that a modality went down or came up."""
    modality, outcome = state.modality, state.telling
    payload = {
        "modality": modality.name,
        "ae_title": modality.ae_title,
        "host": modality.host,
        "port": modality.port,
        "reason": outcome.reason.value if outcome is not None else None,
        "since": state.since,
    }
    relay.tell_condition(modality.name, is_up=state.condition == "up", payload=payload)


def tell_silence(relay: Relay, state: ModalityState) -> None:
    """Tell the targets of events that a modality sends less than expected, or is heard again."""
    payload = {
        "modality": state.modality.name,
        "ae_title": state.modality.ae_title,
        "last_received": state.last_received,
        "expected_by": state.expected_by,
    }
    relay.tell_silence(state.modality.name, is_quiet=state.quiet_since is not None, payload=payload)


def needing_restart(running: Config, wanted: Config) -> list[str]:
    """The settings that differ and that only a restart changes, as the user writes them."""
    names: list[str] = []
    for table in ("ae", "scp", "archive", "events", "web"):
        before, after = getattr(running, table), getattr(wanted, table)
        if (before is None) != (after is None):
            names.append(table)
        elif before is not None:
            keys = [key for key in type(before).model_fields if key not in _RELOADED.get(table, ())]
            names += [f"{table}.{key}" for key in keys if getattr(before, key) != getattr(after, key)]
    return names


def _server_tls(scp: ScpTable) -> ServerTLS | None:
    tls = scp.tls
    if tls is None or tls.certificate is None or tls.key is None:
        return None
    return ServerTLS(tls.certificate, tls.key, tls.client_ca, tls.bind)


def _swept(config: Config) -> Mapping[Operation, frozenset[str]]:
    swept: dict[Operation, frozenset[str]] = {}
    modules = probe_modules(config)
    for sweep in config.sweep:
        names = {
            modality.name
            for modality in config.modality
            for target in sweep.targets
            if target in ("@all", modality.name) or (target.removeprefix("@") in modality.groups and target.startswith("@"))
        }
        operation = _operation_of(sweep, modules)
        swept[operation] = swept.get(operation, frozenset()) | names
    return swept
