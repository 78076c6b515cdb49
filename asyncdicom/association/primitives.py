"""Messages as pynetdicom's DIMSE primitives (PS3.7 sections 9.1 and 10.1)."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from pynetdicom.dimse_primitives import (
    C_CANCEL,
    C_ECHO,
    C_FIND,
    C_GET,
    C_MOVE,
    C_STORE,
    N_ACTION,
    N_CREATE,
    N_DELETE,
    N_EVENT_REPORT,
    N_GET,
    N_SET,
)

from asyncdicom.association.instance import Instance
from asyncdicom.upper_layer.message import RESPONSE, Command, CommandField

# By the Command Field of the request: the primitive, and where it keeps the dataset of its request and of its response.
_PRIMITIVES: dict[int, tuple[type[Any], str | None, str | None]] = {
    CommandField.C_STORE_RQ: (C_STORE, "DataSet", None),
    CommandField.C_FIND_RQ: (C_FIND, "Identifier", "Identifier"),
    CommandField.C_GET_RQ: (C_GET, "Identifier", "Identifier"),
    CommandField.C_MOVE_RQ: (C_MOVE, "Identifier", "Identifier"),
    CommandField.C_ECHO_RQ: (C_ECHO, None, None),
    CommandField.C_CANCEL_RQ: (C_CANCEL, None, None),
    CommandField.N_EVENT_REPORT_RQ: (N_EVENT_REPORT, "EventInformation", "EventReply"),
    CommandField.N_GET_RQ: (N_GET, None, "AttributeList"),
    CommandField.N_SET_RQ: (N_SET, "ModificationList", "AttributeList"),
    CommandField.N_ACTION_RQ: (N_ACTION, "ActionInformation", "ActionReply"),
    CommandField.N_CREATE_RQ: (N_CREATE, "AttributeList", "AttributeList"),
    CommandField.N_DELETE_RQ: (N_DELETE, None, None),
}
# What a primitive says by its class and by having a dataset.
_IMPLIED = {"CommandField", "CommandDataSetType"}


def to_primitive(command: Command, dataset: bytes | bytearray | memoryview | Instance | None) -> Any:
    """Make the primitive of a message.

    :raises ValueError: when a value does not fit its element
    """
    kind, in_request, in_response = _PRIMITIVES[command.field & ~RESPONSE]
    primitive = kind()
    for keyword, value in command.items():
        if keyword not in _IMPLIED:
            setattr(primitive, keyword, list(value) if isinstance(value, tuple) else value)
    place = in_response if command.is_response and command.field != CommandField.C_CANCEL_RQ else in_request
    if isinstance(dataset, Instance) and dataset.data is None and dataset.path is not None:
        # pynetdicom then reads the file in fragments, as they are sent: an object of any size costs little memory.
        primitive._dataset_path = (dataset.path, dataset.offset)
    elif dataset is not None and place is not None:
        setattr(primitive, place, BytesIO((dataset.data or b"") if isinstance(dataset, Instance) else dataset))
    return primitive
