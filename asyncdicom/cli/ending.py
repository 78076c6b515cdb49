"""How a command ends: its exit status, and what it says when it cannot go on."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from asyncdicom.errors import AsyncDicomError, ConfigurationError

OK = 0
FAILED = 1
USAGE = 2
INTERRUPTED = 130
READER_GONE = 141
TERMINATED = 143


class ReaderGone(Exception):
    """Whoever read the output went away, as ``head`` does: there is nobody to write for."""


class Failure(Exception):
    """A command cannot go on; the message tells its user why, and what to do.

    :param status: the exit status
    """

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


def refuse(message: str) -> NoReturn:
    """End the command with a usage error.

    :param message: what is wrong, and what to write instead
    """
    raise Failure(message, USAGE)


def say(message: str) -> None:
    """Tell the user something on standard error."""
    try:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()
    except OSError:
        # Nobody is there to be told.
        return


def ended_by(error: Exception) -> int:
    """Tell the user of an error that ended a command.

    :return: the exit status
    :raises Exception: the error itself, when it is a fault of ours
    """
    # Task groups wrap what passes through them.
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    if isinstance(error, ReaderGone | BrokenPipeError):
        # Whatever is still buffered for it must not be tried again, loudly, when the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return READER_GONE
    if isinstance(error, Failure):
        say(f"asyncdicom: {error}")
        return error.status
    if isinstance(error, AsyncDicomError):
        # A configuration's mistakes stand on a line each.
        for line in str(error).splitlines():
            say(f"asyncdicom: {line}")
        return USAGE if isinstance(error, ConfigurationError) else FAILED
    raise error
