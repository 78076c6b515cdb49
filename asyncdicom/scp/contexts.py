"""Which abstract syntaxes a storage SCP takes, and in which transfer syntaxes."""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Sequence
from dataclasses import replace

from pydicom.uid import UID, UID_dictionary
from pynetdicom.service_class import NonPatientObjectStorageServiceClass, ServiceClass, StorageServiceClass
from pynetdicom.sop_class import uid_to_service_class

from asyncdicom.association.commitment import PUSH_MODEL
from asyncdicom.scp.access import EVERY_OPERATION, OperationName
from asyncdicom.upper_layer.context import UNCOMPRESSED, VERIFICATION, PresentationContext
from asyncdicom.upper_layer.negotiation import ContextResult, ProposedContext, Result, negotiate


class _Everything:
    """Contains whatever is looked for."""

    def __contains__(self, item: object) -> bool:
        return True


_EVERYTHING = _Everything()
_KNOWN = frozenset(uid for uid, (_, kind, *_) in UID_dictionary.items() if kind == "Transfer Syntax")


def results_of(
    proposed: Iterable[ProposedContext],
    contexts: Sequence[PresentationContext] | None,
    promiscuous: bool,
    services: Container[str] = (),
    operations: frozenset[OperationName] = EVERY_OPERATION,
) -> tuple[ContextResult, ...]:
    """What becomes of each context of a request for association; see :func:`transfer_syntaxes_of`, too.

    :param operations: what the peer may do; contexts for anything else that we would take are refused as user rejection
    """
    proposed = tuple(proposed)
    results = negotiate(
        proposed, lambda abstract_syntax: transfer_syntaxes_of(abstract_syntax, contexts, promiscuous, services)
    )
    if operations == EVERY_OPERATION:
        return results
    forbidden = {
        context.context_id for context in proposed if operation_of(context.abstract_syntax, services) not in (None, *operations)
    }
    return tuple(
        replace(result, result=int(Result.USER_REJECTION))
        if result.context_id in forbidden and result.result == Result.ACCEPTANCE
        else result
        for result in results
    )


def operation_of(abstract_syntax: str, services: Container[str] = ()) -> OperationName | None:
    """What an abstract syntax that is taken serves; None for what no rule speaks of."""
    if abstract_syntax == VERIFICATION:
        return "echo"
    if abstract_syntax in services:
        return "commit" if abstract_syntax == PUSH_MODEL else None
    return "store"


def transfer_syntaxes_of(
    abstract_syntax: str,
    contexts: Sequence[PresentationContext] | None,
    promiscuous: bool,
    services: Container[str] = (),
) -> Container[str] | None:
    """The transfer syntaxes in which an abstract syntax is taken.

    :param contexts: take these alone; None takes verification and every storage SOP class, in every transfer syntax
    :param promiscuous: take private and unknown SOP classes for storage, and private transfer syntaxes
    :param services: SOP classes that are served besides
    :return: None when it is not taken at all
    """
    if abstract_syntax in services:
        return UNCOMPRESSED
    if contexts is not None:
        return next((context.transfer_syntaxes for context in contexts if context.abstract_syntax == abstract_syntax), None)
    if abstract_syntax == VERIFICATION or is_storage(abstract_syntax, promiscuous):
        return _EVERYTHING if promiscuous else _KNOWN
    return None


@functools.lru_cache(maxsize=4096)
def is_storage(abstract_syntax: str, promiscuous: bool) -> bool:
    """Whether an abstract syntax is a storage SOP class.

    :param promiscuous: whether one that nobody knows counts as one
    """
    service = uid_to_service_class(UID(abstract_syntax))
    if service in (StorageServiceClass, NonPatientObjectStorageServiceClass):
        return True
    if service is not ServiceClass:
        return False
    known = UID_dictionary.get(abstract_syntax)
    if known is None:
        return promiscuous
    # The retired ones, which pynetdicom does not list.
    return known[1] == "SOP Class" and "Storage" in known[0] and abstract_syntax.startswith("1.2.840.10008.5.1.4.1.1.")
