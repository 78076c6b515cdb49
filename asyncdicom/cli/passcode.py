"""``asyncdicom hash-passcode``."""

from __future__ import annotations

import getpass
import sys

from asyncdicom.cli.ending import OK, refuse
from asyncdicom.scp.users import HashedPasscode

# A field of a user identity has a length of two bytes (PS3.7 Table D.3-14).
_LONGEST = 0xFFFF


def hash_passcode(name: str) -> int:
    """Print a line for the file of users.

    :return: the exit status
    """
    if not name.isprintable() or not name or name != name.strip() or name.startswith("#") or len(name.encode()) > _LONGEST:
        refuse("a user name is printable text, without spaces around it, and does not begin with #")
    passcode = _asked() if sys.stdin.isatty() else _piped()
    if not passcode:
        refuse("the passcode is empty: write it on standard input, in one line")
    if len(passcode) > _LONGEST:
        refuse(f"a passcode has at most {_LONGEST} bytes")
    sys.stdout.write(f"{name}:{HashedPasscode.make(passcode)}\n")
    return OK


def _asked() -> bytes:
    passcode = getpass.getpass("Passcode: ")
    if getpass.getpass("Again: ") != passcode:
        refuse("the two are not the same: nothing was made")
    return passcode.encode()


def _piped() -> bytes:
    # As bytes: it is compared as bytes, whatever this machine takes text to be.
    lines = sys.stdin.buffer.read(_LONGEST + 3).splitlines()
    if len(lines) > 1:
        refuse("there is more than one line on standard input: a passcode is one")
    return lines[0] if lines else b""
