"""The commands: parsing, rendering, exit status.

Nothing heavy is imported before a command needs it, so that ``asyncdicom --help`` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    :param arguments: words after the program's name; those of the process by default
    :return: the exit status: 0 when all targets succeeded, 1 when at least one did not, 2 for usage and configuration,
        130 after Ctrl-C, 141 when the reader of the output went away, 143 after SIGTERM
    """
    try:
        from asyncdicom.cli.app import dispatch

        return dispatch(arguments)
    except KeyboardInterrupt:
        # Before anything began, or for a second time.
        return 130
