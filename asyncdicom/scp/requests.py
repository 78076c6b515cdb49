"""What a storage SCP makes of the requests that it gets, whichever engine carries them (PS3.7 sections 9.1 and 10.1)."""

from __future__ import annotations

from asyncdicom.errors import ProtocolError
from asyncdicom.upper_layer.context import MAX_UID_LENGTH, VERIFICATION
from asyncdicom.upper_layer.message import Command, CommandField

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
NOT_AUTHORIZED = 0x0124
UNRECOGNIZED_OPERATION = 0x0211
CANNOT_UNDERSTAND = 0xC000


def names_instance(command: Command) -> bool:
    """Whether a C-STORE names what it brings by two UIDs, of a length and a number that UIDs have (PS3.5 section 9.1)."""
    instance, sop_class = command.get("AffectedSOPInstanceUID"), command.get("AffectedSOPClassUID")
    if not instance or not sop_class or len(instance) > MAX_UID_LENGTH or len(sop_class) > MAX_UID_LENGTH:
        return False
    return "\\" not in instance and "\\" not in sop_class


def status_without_instance(command: Command, abstract_syntax: str) -> int | None:
    """The status of a request that is no C-STORE.

    :param abstract_syntax: of the presentation context that it came on
    :return: None when it has no response
    :raises ProtocolError: when it is a response itself
    """
    if command.field == CommandField.C_ECHO_RQ:
        # The class must be that of the context (PS3.7 section 9.1.5.1.4).
        is_verification = abstract_syntax == command.get("AffectedSOPClassUID") == VERIFICATION
        return SUCCESS if is_verification else SOP_CLASS_NOT_SUPPORTED
    if command.field == CommandField.C_CANCEL_RQ:
        # Nothing that is done for peers can be cancelled.
        return None
    if command.is_response:
        raise ProtocolError("a response to nothing")
    return UNRECOGNIZED_OPERATION
