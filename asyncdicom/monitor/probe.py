"""One modality asked now, and what came of it as metrics of its own: blackbox_exporter's pattern.

Each module is a question (:mod:`asyncdicom.monitor.modules`). All of them begin with a C-ECHO. A C-FIND may follow, because a
C-ECHO that succeeds does not mean that queries work; or a C-STORE of one small synthetic instance, always the same, to
modalities that allow it.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from datetime import datetime

import anyio
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import choose_encoder
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID

from asyncdicom.association.instance import Instance
from asyncdicom.association.transcript import Transcript
from asyncdicom.errors import ConfigurationError
from asyncdicom.fleet.fleet import Fleet
from asyncdicom.modality import Modality
from asyncdicom.monitor.modules import ProbeModule
from asyncdicom.outcome import Outcome, Phases, Reason, Status
from asyncdicom.upper_layer.context import EXPLICIT_VR_LITTLE_ENDIAN

# Seconds for a probe where nobody says how long it may take.
DEFAULT_TIMEOUT = 10.0
_SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
_PHASES = ("resolve", "connect", "tls", "associate", "operation", "release")


@dataclass(frozen=True)
class Probed:
    """What came of a probe.

    :ivar module: what was asked
    :ivar outcome: of the last operation that was tried
    :ivar duration: seconds, all of it
    :ivar timeout: seconds that it might have taken
    :ivar matches: of the query; None for a module without one
    :ivar transcript: what was said on the wire, line by line
    """

    module: ProbeModule
    outcome: Outcome
    duration: float
    timeout: float
    matches: int | None
    transcript: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the module succeeded: every operation did, and enough matches came."""
        return self.outcome.ok and not self.has_too_few_matches

    @property
    def has_too_few_matches(self) -> bool:
        """Whether the query succeeded with fewer matches than the module wants."""
        return self.outcome.ok and self.matches is not None and self.matches < self.module.min_matches

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Render its metrics.

        :param accept: the Accept header: OpenMetrics for who asks for it, else the text format
        :return: the body and its content type
        """
        encode, content_type = choose_encoder(accept)
        return encode(_registry(self)), content_type


async def probe(fleet: Fleet, modality: Modality, module: ProbeModule, timeout: float) -> Probed:
    """Ask a modality, within the limits of its fleet.

    :param fleet: entered
    :param timeout: seconds; the module's own count where they are fewer
    :raises ConfigurationError: when the modality does not allow it
    """
    if module.operation == "store" and not modality.probe_store:
        raise ConfigurationError(
            "module",
            module.name,
            f"{modality.name} does not allow it: write quirks = {{ probe_store = true }} for a test archive",
        )
    timeout = min(timeout, module.timeout or timeout)
    transcript = Transcript()
    started = time.monotonic()
    asked = _Asked(fleet, modality, module)
    with transcript.listening(), anyio.move_on_after(timeout):
        await asked.ask()
    return Probed(module, asked.concluded(started), time.monotonic() - started, timeout, asked.matches, transcript.lines)


class _Asked:
    """The operations of one probe, one after the other as long as they succeed."""

    def __init__(self, fleet: Fleet, modality: Modality, module: ProbeModule) -> None:
        self._fleet = fleet
        self._modality = module.calls(modality)
        self._module = module
        self._outcome: Outcome | None = None
        self._is_over = False
        self.matches: int | None = None

    async def ask(self) -> None:
        module, whom = self._module, [self._modality]
        # A module of the configuration may want more than that the modality is up: that it does not get it is told by its
        # own metrics, and not by the page.
        tells = module.is_built_in
        async for outcome in self._fleet.echo(whom, require=module.require_contexts, tells=tells):
            self._outcome = outcome
        if module.operation == "echo" or self._outcome is None or not self._outcome.ok:
            self._is_over = True
            return
        if module.operation == "store":
            async for outcome in self._fleet.send([test_instance(self._modality)], whom):
                self._outcome = outcome
        else:
            await self._find(tells)
        self._is_over = True

    async def _find(self, tells: bool) -> None:
        self.matches = 0
        module = self._module
        query = module.query(datetime.now().astimezone().date())
        matches = self._fleet.find(query, [self._modality], limit=module.limit, tells=tells)
        try:
            async for _ in matches:
                self.matches += 1
        finally:
            await matches.aclose()
        outcome = matches.outcomes.get(self._modality.name)
        if outcome is not None:
            if self.matches >= module.limit and outcome.reason is Reason.CANCELLED:
                # Enough had come, and it was told so.
                outcome = replace(outcome, reason=Reason.OK, status=outcome.status or Status(0x0000), detail="")
            # The association of the C-ECHO before showed the same certificate, also when there was no second one.
            expires = outcome.certificate_expires or (self._outcome.certificate_expires if self._outcome else None)
            self._outcome = replace(outcome, certificate_expires=expires)

    def concluded(self, started: float) -> Outcome:
        if self._is_over and self._outcome is not None:
            return self._outcome
        modality = self._modality
        return Outcome(
            modality.name,
            "echo" if self._outcome is None else "store" if self._module.operation == "store" else "find",
            Reason.DEADLINE,
            duration=time.monotonic() - started,
            phases=Phases() if self._outcome is None else self._outcome.phases,
            detail="the probe's time was over",
            ae_title=modality.ae_title,
            host=modality.host,
            port=modality.port,
        )


def test_instance(modality: Modality) -> Instance:
    """Return the instance that a modality is sent: always the same, so that it is kept once, and named what it is."""
    uids = [_uid(modality.name, part) for part in ("study", "series", "instance")]
    dataset = Dataset()
    dataset.SOPClassUID = _SECONDARY_CAPTURE
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.SOPInstanceUID = uids
    dataset.PatientID = "ASYNCDICOM-PROBE"
    dataset.PatientName = "PROBE^NO PATIENT"
    dataset.PatientBirthDate = dataset.PatientSex = dataset.AccessionNumber = dataset.ReferringPhysicianName = ""
    dataset.StudyDate, dataset.StudyTime = "20000101", "000000"
    dataset.StudyID, dataset.SeriesNumber, dataset.InstanceNumber = "PROBE", 1, 1
    dataset.StudyDescription = "TEST OF THE CONNECTION: NO PATIENT DATA"
    dataset.Modality, dataset.ConversionType = "OT", "SYN"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.Rows = dataset.Columns = 2
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = bytes(4)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(EXPLICIT_VR_LITTLE_ENDIAN)
    return Instance.of(dataset)


def _uid(*parts: str) -> str:
    # PS3.5 section B.2: an integer of 128 bits below 2.25.
    digest = hashlib.sha256("\0".join(("asyncdicom probe", *parts)).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def _registry(probed: Probed) -> CollectorRegistry:
    registry = CollectorRegistry()
    outcome = probed.outcome

    def gauge(name: str, text: str, value: float, **labels: str) -> None:
        made = Gauge(f"probe_{name}", text, list(labels), registry=registry)
        (made.labels(**labels) if labels else made).set(value)

    gauge("success", "1 when the module succeeded.", probed.ok)
    gauge("duration_seconds", "How long the probe took.", probed.duration)
    gauge("timeout_seconds", "How long it might have taken.", probed.timeout)
    phases = Gauge(
        "probe_dicom_phase_duration_seconds", "Seconds spent in each phase of the association.", ["phase"], registry=registry
    )
    for phase in _PHASES:
        seconds = getattr(outcome.phases, phase)
        if seconds is not None:
            phases.labels(phase).set(seconds)
    reasons = Gauge("probe_dicom_reason", "Why it ended as it did: 1 for the reason that holds.", ["reason"], registry=registry)
    for reason in Reason:
        reasons.labels(reason.value).set(reason is outcome.reason)
    if outcome.status is not None:
        gauge("dicom_status_code", "The DIMSE status.", int(outcome.status))
    rejected = outcome.rejected
    if rejected.result is not None:
        gauge(
            "dicom_rejected",
            "The A-ASSOCIATE-RJ (PS3.8 Table 9-21).",
            1,
            result=str(rejected.result),
            source=str(rejected.source),
            reason=str(rejected.reason),
        )
    peer = outcome.peer
    if peer.implementation_class_uid is not None or peer.implementation_version is not None:
        gauge(
            "dicom_peer_info",
            "How the peer names its implementation.",
            1,
            implementation_class_uid=peer.implementation_class_uid or "",
            implementation_version=peer.implementation_version or "",
        )
    if outcome.certificate_expires is not None:
        gauge(
            "ssl_earliest_cert_expiry",
            "When the certificate that the peer showed expires, in seconds since the epoch.",
            outcome.certificate_expires,
        )
    if probed.matches is not None:
        gauge("dicom_find_matches", "Matches that came, of those that were asked for.", probed.matches)
        gauge("dicom_failed_due_to_matches", "1 when fewer matches came than the module wants.", probed.has_too_few_matches)
    return registry


def explain(probed: Probed) -> str:
    """What ``debug=true`` and the command show: what was said, what came of it, and the metrics."""
    outcome = probed.outcome
    said = probed.transcript or ("nothing was said: no connection stood, or the engine is not native",)
    result = [f"{outcome.operation}: {outcome.reason.value}" + (f": {outcome.detail}" if outcome.detail else "")]
    if probed.has_too_few_matches:
        result.append(f"too few matches: {probed.matches}, and the module wants {probed.module.min_matches}")
    elif not outcome.ok:
        result.append(f"look at: {outcome.remedy}")
    body = probed.render()[0].decode()
    parts = {
        f"Probe of {outcome.modality} ({outcome.ae_title}@{outcome.host}:{outcome.port}), module {probed.module.name}": said,
        "What came of it": result,
        "Metrics": body.splitlines(),
    }
    return "\n".join(f"{title}\n{'-' * len(title)}\n" + "\n".join(lines) + "\n" for title, lines in parts.items())
