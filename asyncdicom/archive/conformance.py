"""What is odd about an instance, and what becomes of it: what arrived is kept as it came, wherever it can be told what it is.

====================  ====================================================================  ====================
What                  Means                                                                 Becomes
====================  ====================================================================  ====================
``sop_instance_uid``  the dataset names another SOP instance than the C-STORE request       quarantined, 0xB007
``sop_class_uid``     the dataset names another SOP class, or none                          quarantined, 0xB007
``no_study``          the dataset has no Study or no Series Instance UID                    quarantined, 0x0000
``foreign_group``     the dataset begins with elements of groups 0000 to 0007, such as      quarantined, 0x0000
                      File Meta Information (PS3.5 section 7.1, PS3.10 section 7.1)
``odd_length``        the dataset has an odd number of bytes (PS3.5 section 7.1.1)          accepted, 0x0000
====================  ====================================================================  ====================

Without a SOP Instance UID in the dataset, or where it cannot be parsed up to its UIDs, an instance is refused with 0xC000.
Quarantined means: kept and indexed as any other, in a folder of its own, so that nobody takes it for good unawares. 0xB007 is
the warning "data set does not match SOP class" (PS3.4 Table B.2-1), with which it counts as stored.
"""

from __future__ import annotations

from asyncdicom.archive.keys import Keys
from asyncdicom.association.received import Received
from asyncdicom.elements import DEFLATED
from asyncdicom.upper_layer.context import EXPLICIT_VR_BIG_ENDIAN

# No layout gives a name with a "~".
QUARANTINE = "quarantine~"
MISMATCHED = frozenset({"sop_instance_uid", "sop_class_uid"})
SUSPECT = MISMATCHED | {"no_study", "foreign_group"}
DOUBTS = (*sorted(SUSPECT), "odd_length")
# The first group that a dataset may have.
_FIRST_GROUP = 0x0008


def doubts_of(received: Received, keys: Keys, size: int, beginning: bytes) -> tuple[str, ...]:
    """What is odd about an instance; nothing, as good as always.

    :param size: bytes of the dataset
    :param beginning: its first two bytes
    """
    doubts: list[str] = []
    if keys.sop_instance_uid != received.sop_instance_uid.strip("\0 "):
        doubts.append("sop_instance_uid")
    if keys.sop_class_uid != received.sop_class_uid.strip("\0 "):
        doubts.append("sop_class_uid")
    if not (keys.study_instance_uid and keys.series_instance_uid):
        doubts.append("no_study")
    if received.transfer_syntax_uid not in DEFLATED:
        order = "big" if received.transfer_syntax_uid == EXPLICIT_VR_BIG_ENDIAN else "little"
        if int.from_bytes(beginning, order) < _FIRST_GROUP:  # type: ignore[arg-type]
            doubts.append("foreign_group")
    if size % 2:
        doubts.append("odd_length")
    return tuple(doubts)
