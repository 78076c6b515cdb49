"""One process for one archive: two would overwrite each other's decisions."""

from __future__ import annotations

import fcntl
import logging
from pathlib import Path

from asyncdicom.errors import ConfigurationError

_log = logging.getLogger(__name__)


def hold(descriptor: int, path: Path, setting: str) -> None:
    """Lock what a descriptor stands for until the descriptor is closed, or its process dies.

    :param setting: where the user wrote the path
    :raises ConfigurationError: when another process, or another archive of this one, holds it
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigurationError(
            setting, str(path), "this is in use by another process: stop that one, or give each its own"
        ) from None
    except OSError as error:
        # Some network file systems have no locks for folders; that must not keep an archive from opening.
        _log.warning("%s: the file system cannot lock %s (%s); make sure that one process alone uses it", setting, path, error)
