"""A file that nobody sees yet: without a name where the file system can do that, else under a temporary one."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Sequence

from asyncdicom.archive.contract import Draft
from asyncdicom.elements import Buffer

# How many buffers one call of the system takes (IOV_MAX is 1024).
_AT_ONCE = 512


class FileDraft(Draft):
    """Bytes on their way into a folder. Every method blocks, and is called by one thread at a time.

    :param descriptor: of the file, which is this object's from now on
    :param part: its temporary name; None when it has none
    :param root: a descriptor of the folder that the name is relative to
    :param header: what precedes the dataset
    :param hashed: whether to compute the SHA-256 of the dataset on the way
    :ivar size: bytes of the dataset
    """

    def __init__(self, descriptor: int, part: str | None, root: int, header: bytes, *, hashed: bool = False) -> None:
        self.descriptor = descriptor
        self.part = part
        self.size = 0
        self.offset = len(header)
        self._root = root
        self._header: bytes | None = header
        self._hash = hashlib.sha256(usedforsecurity=False) if hashed else None
        self._is_synced = False

    def append(self, parts: Sequence[Buffer]) -> None:
        """Write more of the dataset.

        :raises OSError: when it cannot be written
        """
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        self.size += sum(len(view) for view in views)
        if self._hash is not None:
            for view in views:
                self._hash.update(view)
        if self._header is not None:
            views.insert(0, memoryview(self._header))
            self._header = None
        while views:
            written = os.writev(self.descriptor, views[:_AT_ONCE])
            if not written:
                raise OSError(errno.ENOSPC, "nothing could be written")
            # Short writes are rare: a signal, 2 GiB at once, the last block of a disk.
            taken = 0
            while taken < len(views) and written >= len(views[taken]):
                written -= len(views[taken])
                taken += 1
            del views[:taken]
            if written:
                views[0] = views[0][written:]

    def read(self, size: int, at: int) -> bytes:
        """Read some of the dataset that was written."""
        return os.pread(self.descriptor, size, self.offset + at)

    def chunks(self, size: int) -> Iterator[bytes]:
        """Read all of the dataset that was written."""
        for at in range(0, self.size, size):
            yield self.read(min(size, self.size - at), at)

    @property
    def sha256(self) -> str:
        """The hexadecimal SHA-256 of the dataset; empty when it was not asked for."""
        return "" if self._hash is None else self._hash.hexdigest()

    def sync(self) -> None:
        """Make the bytes durable. Once: after an error the kernel may have dropped the pages and called them clean, and a
        second try would succeed.

        :raises OSError: when they are not
        """
        if not self._is_synced:
            os.fdatasync(self.descriptor)
            self._is_synced = True

    def named(self, *, is_moved: bool) -> None:
        """It has its name: give the descriptor back.

        :param is_moved: whether the temporary name is gone with that
        :raises OSError: from closing, which is an error of a write on some network file systems
        """
        part, self.part = self.part, None
        if part is not None and not is_moved:
            os.unlink(part, dir_fd=self._root)
        self._close()

    def discard(self) -> None:
        """Let go of it all. Harmless when it is gone already."""
        if self.descriptor < 0:
            return
        with contextlib.suppress(OSError):
            # It was never acknowledged; the first error is the one to report.
            if self.part is not None:
                os.unlink(self.part, dir_fd=self._root)
        with contextlib.suppress(OSError):
            self._close()

    def _close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)
