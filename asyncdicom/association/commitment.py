"""Storage commitment as data: what is asked, and what is reported (PS3.4 Annex J, the Push Model)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from pydicom.dataset import Dataset
from pydicom.uid import generate_uid

from asyncdicom.association.contract import Association
from asyncdicom.association.query import decode_dataset, encode_dataset
from asyncdicom.errors import DatasetError
from asyncdicom.outcome import Status
from asyncdicom.upper_layer.context import MAX_UID_LENGTH, PresentationContext

PUSH_MODEL = "1.2.840.10008.1.20.1"
# The one instance that there is (PS3.4 section J.3.5).
PUSH_MODEL_INSTANCE = "1.2.840.10008.1.20.1.1"
# The only action (PS3.4 Table J.3-1), and the two events (PS3.4 Table J.3-3).
REQUEST_COMMITMENT = 1
ALL_COMMITTED = 1
FAILURES_EXIST = 2
# For whoever asks, and for whoever reports on an association of its own.
AS_SCU = PresentationContext(PUSH_MODEL)
AS_SCP = PresentationContext(PUSH_MODEL, scu_role=False, scp_role=True)


class FailureReason(IntEnum):
    """Why there is no commitment for an instance (PS3.3 section C.14.1.1)."""

    PROCESSING_FAILURE = 0x0110
    NO_SUCH_OBJECT_INSTANCE = 0x0112
    CLASS_INSTANCE_CONFLICT = 0x0119
    DUPLICATE_TRANSACTION_UID = 0x0131
    RESOURCE_LIMITATION = 0x0213


class InstanceReference(NamedTuple):
    """An instance that is spoken of."""

    sop_class_uid: str
    sop_instance_uid: str


@dataclass(frozen=True)
class CommitmentRequest:
    """Who asks whether these instances are safe."""

    transaction_uid: str
    references: tuple[InstanceReference, ...]

    def encode(self, transfer_syntax: str) -> bytes:
        """Return the Action Information (PS3.4 Table J.3-1)."""
        dataset = Dataset()
        dataset.TransactionUID = self.transaction_uid
        dataset.ReferencedSOPSequence = [_item(reference) for reference in self.references]
        return encode_dataset(dataset, transfer_syntax)

    @classmethod
    def decode(cls, encoded: bytes, transfer_syntax: str) -> CommitmentRequest:
        """Read the Action Information.

        :raises DatasetError: when it cannot be read, or something is missing
        """
        dataset = decode_dataset(encoded, transfer_syntax)
        references = _references(dataset, "ReferencedSOPSequence")
        if not references:
            raise DatasetError("a request for storage commitment names no instance")
        return cls(_transaction(dataset), references)


@dataclass(frozen=True)
class CommitmentReport:
    """What a storage SCP says of instances that it was asked about.

    :ivar transaction_uid: of the request
    :ivar committed: those that are safe
    :ivar failed: those that are not, each with the Failure Reason (PS3.3 section C.14.1.1)
    """

    transaction_uid: str
    committed: tuple[InstanceReference, ...] = ()
    failed: tuple[tuple[InstanceReference, int], ...] = ()

    @property
    def event_type(self) -> int:
        """The Event Type ID (PS3.4 Table J.3-3)."""
        return FAILURES_EXIST if self.failed else ALL_COMMITTED

    def dataset(self) -> Dataset:
        """Return the Event Information (PS3.4 Table J.3-3)."""
        dataset = Dataset()
        dataset.TransactionUID = self.transaction_uid
        if self.committed:
            dataset.ReferencedSOPSequence = [_item(reference) for reference in self.committed]
        if self.failed:
            dataset.FailedSOPSequence = [_item(reference, reason) for reference, reason in self.failed]
        return dataset

    @classmethod
    def decode(cls, encoded: bytes, transfer_syntax: str) -> CommitmentReport:
        """Read the Event Information.

        :raises DatasetError: when it cannot be read, or something is missing
        """
        dataset = decode_dataset(encoded, transfer_syntax)
        reasons = [_number(item) for item in dataset.get("FailedSOPSequence") or ()]
        failed = tuple(zip(_references(dataset, "FailedSOPSequence"), reasons, strict=True))
        return cls(_transaction(dataset), _references(dataset, "ReferencedSOPSequence"), failed)


async def request_commitment(
    association: Association, references: Iterable[InstanceReference], transaction_uid: str | None = None
) -> tuple[Status, str]:
    """Ask a storage SCP to commit itself to instances; it reports later, usually on an association of its own.

    :param association: with :data:`AS_SCU` among its contexts
    :param transaction_uid: a new one by default
    :return: the status of the request, and its Transaction UID
    :raises OperationError: when the peer does not answer
    """
    transaction = transaction_uid or str(generate_uid(prefix=None))
    dataset = Dataset()
    dataset.TransactionUID = transaction
    dataset.ReferencedSOPSequence = [_item(reference) for reference in references]
    status, _ = await association.n_action(REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, dataset)
    return status, transaction


def _item(reference: InstanceReference, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = reference.sop_class_uid
    item.ReferencedSOPInstanceUID = reference.sop_instance_uid
    if reason is not None:
        item.FailureReason = reason
    return item


def _transaction(dataset: Dataset) -> str:
    return _uid(dataset.get("TransactionUID"), "Transaction UID")


def _references(dataset: Dataset, keyword: str) -> tuple[InstanceReference, ...]:
    items: Sequence[Dataset] = dataset.get(keyword) or ()
    return tuple(
        InstanceReference(
            _uid(item.get("ReferencedSOPClassUID"), "Referenced SOP Class UID"),
            _uid(item.get("ReferencedSOPInstanceUID"), "Referenced SOP Instance UID"),
        )
        for item in items
    )


def _uid(value: object, name: str) -> str:
    text = "" if value is None else str(value).strip("\0 ")
    if not 0 < len(text) <= MAX_UID_LENGTH:
        raise DatasetError(f"storage commitment: the {name} is missing, or is none (PS3.5 section 9.1)")
    return text


def _number(item: Dataset) -> int:
    reason = item.get("FailureReason")
    return int(reason) if isinstance(reason, int) else int(FailureReason.PROCESSING_FAILURE)
