"""Presentation contexts as they are proposed (PS3.8 section 7.1.1.13), and the SOP classes that asyncdicom itself asks for."""

from __future__ import annotations

from dataclasses import dataclass

VERIFICATION = "1.2.840.10008.1.1"

PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
PATIENT_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.1.2"
PATIENT_ROOT_GET = "1.2.840.10008.5.1.4.1.2.1.3"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"

IMPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2"
EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"
DEFLATED_EXPLICIT_VR_LITTLE_ENDIAN = "1.2.840.10008.1.2.1.99"
EXPLICIT_VR_BIG_ENDIAN = "1.2.840.10008.1.2.2"

# Little endian first: the peer usually takes the first that it knows. Big endian is retired (PS3.5 section A.3).
UNCOMPRESSED = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)

# PS3.5 section 9.1.
MAX_UID_LENGTH = 64
# An A-ASSOCIATE-RQ numbers its contexts with the odd numbers of one byte (PS3.8 section 9.3.2.2).
MAX_CONTEXTS = 128


@dataclass(frozen=True, slots=True)
class PresentationContext:
    """One abstract syntax with the transfer syntaxes offered for it.

    :ivar abstract_syntax: a SOP class UID
    :ivar transfer_syntaxes: transfer syntax UIDs, preferred first
    :ivar scu_role: propose to act as SCU; None leaves the default role (PS3.7 D.3.3.4)
    :ivar scp_role: propose to act as SCP, as C-GET needs it for the instances that come back
    """

    abstract_syntax: str
    transfer_syntaxes: tuple[str, ...] = UNCOMPRESSED
    scu_role: bool | None = None
    scp_role: bool | None = None


@dataclass(frozen=True, slots=True)
class AcceptedContext:
    """A presentation context that both sides agreed on."""

    context_id: int
    abstract_syntax: str
    transfer_syntax: str
    as_scu: bool = True
    as_scp: bool = False
