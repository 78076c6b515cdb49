"""The commands and what every one of them has in common: usage errors, help, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cyclopts import App, Parameter
from cyclopts.exceptions import CycloptsError

from asyncdicom._version import __version__
from asyncdicom.cli import commands
from asyncdicom.cli.ending import OK, USAGE, ended_by, say

# In the order in which a newcomer meets them.
_COMMANDS: tuple[Callable[..., int], ...] = (
    commands.echo,
    commands.find,
    commands.move,
    commands.get,
    commands.send,
    commands.probe,
    commands.serve,
    commands.check_config,
    commands.hash_passcode,
    commands.verify,
    commands.simulate,
    commands.demo,
)


def make_app() -> App:
    """Return the application with all its commands."""
    app = App(
        name="asyncdicom",
        help=(
            "Ask fleets of DICOM devices, and receive from them.\n\n"
            "A TARGET is a name of the configuration, @group, @all, or AET@host:port.\n"
            "Exit status: 0 all targets succeeded, 1 at least one did not, 2 usage or configuration."
        ),
        help_format="plaintext",
        version=__version__,
        default_parameter=Parameter(negative=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for position, command in enumerate(_COMMANDS):
        app.command(command, sort_key=position)
    return app


def dispatch(arguments: Sequence[str] | None) -> int:
    """Parse the arguments, run the command, and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    app = make_app()
    try:
        status = app(words, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            # Now, because a reader that went away is told of here and not when the interpreter ends.
            sys.stdout.flush()
    except CycloptsError as error:
        name = f"asyncdicom {words[0]}" if words and words[0] in app else "asyncdicom"
        say(f"{name}: {error}\nTry '{name} --help'.")
        return USAGE
    except Exception as error:
        return ended_by(error)
    if status is None:
        # Help or the version was shown: because it was asked for, or because no command was.
        return OK if words else USAGE
    return int(status)
