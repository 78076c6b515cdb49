"""What is asked of a modality: its request for association, as either engine sends it (PS3.8 section 9.3.2)."""

from __future__ import annotations

from collections.abc import Sequence

from asyncdicom.association.query import Query
from asyncdicom.modality import Modality
from asyncdicom.upper_layer import negotiation
from asyncdicom.upper_layer.context import PresentationContext
from asyncdicom.upper_layer.negotiation import AssociateRequest, ExtendedNegotiation


def extended_of(query: Query | None) -> tuple[ExtendedNegotiation, ...]:
    """The extended negotiation that a query asks for (PS3.7 D.3.3.5)."""
    if query is None or not query.extended_negotiation:
        return ()
    return (ExtendedNegotiation(query.find_sop_class, query.extended_negotiation),)


def request_to(
    modality: Modality,
    calling_ae_title: str,
    contexts: Sequence[PresentationContext],
    extended: tuple[ExtendedNegotiation, ...],
) -> AssociateRequest:
    """Make the request for an association with a modality.

    :raises DatasetError: when a UID is none
    """
    proposed, roles = negotiation.propose(contexts)
    return AssociateRequest(
        called_ae_title=modality.ae_title,
        calling_ae_title=calling_ae_title,
        contexts=proposed,
        max_length=modality.limits.max_pdu,
        roles=roles,
        extended=extended,
        user_identity=modality.user_identity,
    )
