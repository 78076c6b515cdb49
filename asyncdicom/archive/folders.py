"""The folders of an archive: made, checked, synced, and taken away again when they are empty.

Everything goes through a descriptor of the root, so that a file system that is unmounted under us is an error and not a
quiet beginning on another disk.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from asyncdicom.archive.exclusive import hold
from asyncdicom.errors import ArchiveError, ConfigurationError

_SETTING = "archive.directory"
# What is kept may be patient data: not for everybody on the machine.
_MODE = 0o750
# Folders remembered; then they are forgotten, and each is synced once more.
_MAX_SETTLED = 1 << 16
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


class Folders:
    """The folders below a root. Paths are relative to it, with ``/`` between folders; it is itself ``""``.

    :param root: made when it is missing
    :param sync: whether entries of folders are made durable

    :ivar descriptor: an open descriptor on the root; -1 while closed
    """

    def __init__(self, root: Path, *, sync: bool) -> None:
        self.root = root
        self.descriptor = -1
        self._sync = sync
        # Those that are there, with entries as durable as was asked for. The lock guards making and unmaking, so that no
        # store relies on a folder whose own entry is not on the disk yet.
        self._settled: set[str] = set()
        self._lock = threading.Lock()

    def open(self) -> None:
        """Take possession of the root.

        :raises ConfigurationError: when it cannot be used, or another process has it
        """
        try:
            missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
            self.root.mkdir(_MODE, parents=True, exist_ok=True)
            self.descriptor = os.open(self.root, _OPEN)
            if self._sync:
                for path in missing:
                    sync_folder(path.parent)
        except OSError as error:
            self.close()
            raise ConfigurationError(_SETTING, str(self.root), f"it cannot be used: {error.strerror}") from error
        try:
            hold(self.descriptor, self.root, _SETTING)
        except BaseException:
            self.close()
            raise

    def open_for_reading(self) -> None:
        """Open a root that somebody else may have.

        :raises ConfigurationError: when there is none
        """
        try:
            self.descriptor = os.open(self.root, _OPEN)
        except OSError as error:
            raise ConfigurationError(_SETTING, str(self.root), f"it cannot be read: {error.strerror}") from error

    def close(self) -> None:
        """Give the root back."""
        self._settled.clear()
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def at(self, path: str) -> Path:
        """Return a path for what cannot work relative to a descriptor; it follows the root wherever that is."""
        return Path(f"/proc/self/fd/{self.descriptor}") / path

    def is_settled(self, folder: str) -> bool:
        """Whether a folder is known to be there, and as durable as was asked for."""
        return not folder or folder in self._settled

    def prepare(self, folder: str) -> list[str]:
        """Make sure of a folder, and return those that had to be made, outermost first.

        :raises ArchiveError: when it leads out of the root
        """
        if self.is_settled(folder):
            return []
        with self._lock:
            made: list[str] = []
            try:
                folders = _chain(folder)
                for path in folders:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(path, _MODE, dir_fd=self.descriptor)
                        made.append(path)
                self._check_inside(folder)
                if self._sync:
                    for path in folders:
                        # Also one that was there already: an earlier life may have ended before it synced its entry.
                        if path in made or path not in self._settled:
                            self.sync(path.rpartition("/")[0])
            except BaseException:
                self._unmake(made)
                raise
            if len(self._settled) > _MAX_SETTLED:
                self._settled.clear()
            self._settled.update(folders)
            return made

    def _check_inside(self, folder: str) -> None:
        # Names are encoded; what is left is a symbolic link that somebody put into the archive.
        root, found = os.path.realpath(self.at("")), os.path.realpath(self.at(folder))
        if os.path.commonpath([root, found]) != root:
            raise ArchiveError("a folder of the archive leads outside of it")

    def sync(self, folder: str) -> None:
        """Make the entries of a folder durable."""
        sync_folder(folder or ".", self.descriptor)

    def unmake(self, folders: list[str]) -> None:
        """Remove folders that :meth:`prepare` made, as far as they are empty."""
        if folders:
            with self._lock:
                self._unmake(folders)

    def tidy(self, folder: str) -> None:
        """Remove a folder and those that it lies in, as far as they are empty."""
        self.unmake(_chain(folder))

    def _unmake(self, folders: list[str]) -> None:
        for folder in reversed(folders):
            # Out of the set first: whoever finds it gone makes it, and syncs it, again.
            settled = folder in self._settled
            self._settled.discard(folder)
            try:
                os.rmdir(folder, dir_fd=self.descriptor)
            except FileNotFoundError:
                continue
            except OSError:
                # Another store has put something there, or the disk is failing: an empty folder harms nobody.
                if settled:
                    self._settled.add(folder)
                return

    def look_again(self, folder: str) -> None:
        """Forget what was believed of a folder that turned out to be missing. A root that was removed and made anew is
        found again; one that is merely hidden is kept, for what lies at its path then is another file system.

        :raises ArchiveError: when somebody else has the root
        """
        with self._lock:
            self._settled.discard(folder)
            if os.fstat(self.descriptor).st_nlink:
                return
            found = os.open(self.root, _OPEN)
            try:
                hold(found, self.root, _SETTING)
                # In place, so that the number is never free: other threads are using it.
                os.dup2(found, self.descriptor, inheritable=False)
                self._settled.clear()
            except ConfigurationError as error:
                raise ArchiveError(str(error)) from None
            finally:
                os.close(found)


def _chain(folder: str) -> list[str]:
    """Return a folder after all that it lies in, outermost first."""
    names = folder.split("/") if folder else []
    return ["/".join(names[: depth + 1]) for depth in range(len(names))]


def sync_folder(folder: Path | str, root: int | None = None) -> None:
    """Make the entries of a folder durable."""
    descriptor = os.open(folder, _OPEN, dir_fd=root)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
