"""Bytes in a folder: written, synced, named, and the folder synced, in this order.

A file is written without a name (``O_TMPFILE``) and given its name by ``linkat``: a crash leaves nothing to sweep, and a
name that is taken is refused atomically. Where the file system lacks either, a file under a temporary name takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import shutil
import stat
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from asyncdicom.archive.conformance import QUARANTINE
from asyncdicom.archive.contract import Content, Draft, Durability, Holder, Steps
from asyncdicom.archive.draft import FileDraft
from asyncdicom.archive.folders import Folders
from asyncdicom.archive.space import Space
from asyncdicom.elements import Buffer, scan
from asyncdicom.errors import ArchiveError, DatasetError

# Inside the root, because a name can be given only within one file system. No layout gives a name with a leading dot.
_INCOMING = ".incoming"
_ASIDE = f"{_INCOMING}/aside"
# What is kept may be patient data: not for everybody on the machine.
_FILE_MODE = 0o640
_CHUNK = 1 << 20
# File Meta Information of ours has some 300 bytes.
_HEAD = 8192
_META = frozenset({0x00020002, 0x00020003, 0x00020010, 0x00020016})
# What is answered where there are no unnamed files (open(2)), and where they cannot be named, as without /proc.
_NO_UNNAMED = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL})
_NO_NAMING = frozenset({errno.ENOENT, errno.ENOSYS, errno.EPERM, errno.EXDEV})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
# How often a folder may vanish between our making it and our using it, because another store that failed tidied up.
_ATTEMPTS = 8


class Directory:
    """Objects as files below a root.

    :param root: made when it is missing
    :param durability: ``full`` syncs files and folders, ``file`` files alone, ``none`` nothing
    :param min_free: bytes that must stay free
    :param unnamed: whether to write files without a name first; None tries
    """

    def __init__(self, root: Path, *, durability: Durability, min_free: int = 0, unnamed: bool | None = None) -> None:
        self._sync_files = durability != "none"
        self._sync_folders = durability == "full"
        self._folders = Folders(root, sync=self._sync_folders)
        self._space = Space(lambda: self._root, min_free)
        self._wanted_unnamed = unnamed
        self._unnamed = bool(unnamed)
        self._is_memory = False
        # Without links a free name cannot be taken atomically; one process has the archive, so a lock of ours will do.
        self._naming = threading.Lock()
        self._numbers = itertools.count()

    @property
    def _root(self) -> int:
        return self._folders.descriptor

    # Opening and closing

    def open(self) -> None:
        self._folders.open()
        try:
            self._sweep()
            self._unnamed = self._try_unnamed() if self._wanted_unnamed is None else self._wanted_unnamed
            self._is_memory = _is_memory(self._root)
        except BaseException:
            self.close()
            raise

    def open_for_reading(self) -> None:
        """Look without taking possession: whoever has the directory goes on. :meth:`close_after_reading` ends it.

        :raises ConfigurationError: when there is none
        """
        self._folders.open_for_reading()

    def close_after_reading(self) -> None:
        """Give everything back, and leave everything as it is."""
        self._folders.close()

    def close(self) -> None:
        if self._root >= 0:
            # It stays when something was kept aside that could not be dropped; opening again deals with it.
            self._folders.tidy(_INCOMING)
        self._folders.close()

    def _sweep(self) -> None:
        """Remove what an earlier life had not named yet. What it kept aside is for the archive to decide."""
        with contextlib.suppress(FileNotFoundError):
            for left in self._folders.at(_INCOMING).iterdir():
                if left.name != Path(_ASIDE).name:
                    left.unlink()
            self._folders.tidy(_ASIDE)

    def _try_unnamed(self) -> bool:
        name = f"{_INCOMING}/{next(self._numbers)}"
        try:
            self._folders.prepare(_INCOMING)
            descriptor = self._open_unnamed(".")
            try:
                self._link_unnamed(descriptor, name)
            finally:
                os.close(descriptor)
            os.unlink(name, dir_fd=self._root)
        except OSError as error:
            # A full or read-only file system opens nevertheless: stores are refused with a status until it recovers.
            return error.errno not in _NO_UNNAMED | _NO_NAMING
        finally:
            self._folders.tidy(_INCOMING)
        return True

    @property
    def is_memory(self) -> bool:
        return self._is_memory

    # Reading

    def exists(self, path: str) -> bool:
        try:
            os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[int]:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def holder(self, path: str) -> Holder | None:
        try:
            with self._reading(path) as descriptor:
                found = os.fstat(descriptor)
                if not stat.S_ISREG(found.st_mode):
                    raise ArchiveError("something that is no file has the name of an object")
                return _holder(os.pread(descriptor, _HEAD, 0), found.st_size)
        except FileNotFoundError:
            return None

    def matches(self, path: str, holder: Holder, data: Content) -> bool:
        content = _ours(data)
        size = content.size if isinstance(content, FileDraft) else sum(len(part) for part in content)
        if holder.size != size:
            return False
        with self._reading(path) as descriptor:
            at = 0
            for part in content.chunks(_CHUNK) if isinstance(content, FileDraft) else _pieces(content):
                there = os.pread(descriptor, len(part), holder.offset + at)
                if there != part:
                    return False
                at += len(part)
        return True

    def head(self, path: str, holder: Holder, size: int) -> bytes:
        with self._reading(path) as descriptor:
            return os.pread(descriptor, size, holder.offset)

    def digest(self, path: str, holder: Holder) -> str:
        digest = hashlib.sha256(usedforsecurity=False)
        with self._reading(path) as descriptor:
            at = holder.offset
            while chunk := os.pread(descriptor, _CHUNK, at):
                digest.update(chunk)
                at += len(chunk)
        return digest.hexdigest()

    # Writing

    def draft(self, header: bytes, *, hashed: bool) -> Draft:
        # In the root, because the folder is not known yet; a name can be given anywhere within one file system.
        descriptor, part = self._open_new("")
        return FileDraft(descriptor, part, self._root, header, hashed=hashed)

    def create(self, path: str, header: bytes, data: Content, steps: Steps) -> None:
        folder = path.rpartition("/")[0]
        made: list[str] = []
        try:
            for attempts_left in reversed(range(_ATTEMPTS)):
                try:
                    made += self._folders.prepare(folder)
                    return self._create(path, folder, header, data, steps)
                except FileNotFoundError:
                    # Removed as empty by another store that failed, or by hand.
                    self._folders.look_again(folder)
                    if not attempts_left:
                        raise
        except BaseException:
            self._folders.unmake(made)
            raise

    def _create(self, path: str, folder: str, header: bytes, data: Content, steps: Steps) -> None:
        draft, started = self._written(folder, header, data, steps)
        is_named = False
        try:
            is_moved = self._give_name(draft, path)
            is_named = True
            draft.named(is_moved=is_moved)
            _note(steps, "name", started)
        except BaseException as error:
            if is_named:
                _discard(path, self._root)
            # One that arrived as a draft may find its place under another name, or after its folder is made again.
            if draft is not data or not isinstance(error, FileExistsError | FileNotFoundError):
                draft.discard()
            raise

    def _written(
        self, folder: str, header: bytes, data: Content, steps: Steps, *, unnamed: bool = True
    ) -> tuple[FileDraft, float]:
        """The bytes in a file that nobody sees, synced as far as was asked for; and when that was."""
        started = time.perf_counter()
        content = _ours(data)
        if isinstance(content, FileDraft):
            draft = content
        else:
            descriptor, part = self._open_new(folder) if unnamed else self._open_part()
            draft = FileDraft(descriptor, part, self._root, header)
        try:
            if not isinstance(content, FileDraft):
                draft.append(content)
                started = _note(steps, "write", started)
            if self._sync_files:
                draft.sync()
                started = _note(steps, "sync", started)
        except BaseException:
            draft.discard()
            raise
        return draft, started

    def _open_new(self, folder: str) -> tuple[int, str | None]:
        """Open a new file that nobody sees yet, and return a descriptor, and its temporary name if it has one."""
        if self._unnamed:
            try:
                return self._open_unnamed(folder or "."), None
            except OSError as error:
                if error.errno not in _NO_UNNAMED:
                    raise
                # It could not be tried when the archive was opened.
                self._unnamed = False
        return self._open_part()

    def _open_unnamed(self, folder: str) -> int:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, _FILE_MODE, dir_fd=self._root)

    def _link_unnamed(self, descriptor: int, path: str) -> None:
        os.link(f"/proc/self/fd/{descriptor}", path, dst_dir_fd=self._root)

    def _open_part(self) -> tuple[int, str]:
        name = f"{_INCOMING}/{next(self._numbers)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._folders.prepare(_INCOMING)
        return os.open(name, flags, _FILE_MODE, dir_fd=self._root), name

    def _give_name(self, draft: FileDraft, path: str) -> bool:
        """Give a draft its name, which must be free, and return whether the temporary one is gone with that."""
        part = draft.part
        if part is None:
            self._link_unnamed(draft.descriptor, path)
            return True
        try:
            os.link(part, path, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            with self._naming:
                if self.exists(path):
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
                os.rename(part, path, src_dir_fd=self._root, dst_dir_fd=self._root)
            return True
        return False

    def replace(self, path: str, header: bytes, data: Content, steps: Steps, *, undoable: bool) -> None:
        folder = path.rpartition("/")[0]
        for attempts_left in reversed(range(_ATTEMPTS)):
            try:
                self._folders.prepare(folder)
                return self._replace(path, folder, header, data, steps, undoable)
            except FileNotFoundError:
                # The folders for what is kept aside come and go with every replacement.
                self._folders.look_again(folder)
                if not attempts_left:
                    raise

    def _replace(self, path: str, folder: str, header: bytes, data: Content, steps: Steps, undoable: bool) -> None:
        draft, started = self._written(folder, header, data, steps, unnamed=False)
        aside = replaced = False
        try:
            if draft.part is None:
                # Only what has a name can take the place of another in one step.
                name = f"{_INCOMING}/{next(self._numbers)}"
                self._folders.prepare(_INCOMING)
                self._link_unnamed(draft.descriptor, name)
                draft.part = name
            if undoable:
                self._put_aside(path)
                aside = True
            os.rename(draft.part, path, src_dir_fd=self._root, dst_dir_fd=self._root)
            replaced = True
            draft.named(is_moved=True)
            started = _note(steps, "name", started)
            if self._sync_folders:
                self._folders.sync(folder)
                _note(steps, "sync_folder", started)
        except BaseException as error:
            if aside and replaced:
                self.restore(path)
            elif aside:
                self.forget(path)
            if draft is not data or not isinstance(error, FileNotFoundError):
                draft.discard()
            raise

    # What a replacement keeps aside until the index has committed: a second name, in a mirror of the archive's folders.

    def _put_aside(self, path: str) -> None:
        aside = f"{_ASIDE}/{path}"
        self._folders.prepare(aside.rpartition("/")[0])
        try:
            os.link(path, aside, src_dir_fd=self._root, dst_dir_fd=self._root, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy(path, aside)
        if self._sync_folders:
            self._folders.sync(aside.rpartition("/")[0])

    def _copy(self, path: str, target: str) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        with self._reading(path) as source:
            descriptor = os.open(target, flags, _FILE_MODE, dir_fd=self._root)
            try:
                with open(descriptor, "wb", closefd=False) as copy, open(source, "rb", closefd=False) as original:
                    shutil.copyfileobj(original, copy, _CHUNK)
                if self._sync_files:
                    os.fdatasync(descriptor)
            except BaseException:
                _discard(target, self._root)
                raise
            finally:
                os.close(descriptor)

    def restore(self, path: str) -> None:
        self._folders.prepare(path.rpartition("/")[0])
        os.rename(f"{_ASIDE}/{path}", path, src_dir_fd=self._root, dst_dir_fd=self._root)
        with contextlib.suppress(FileNotFoundError):
            # Renaming one name of a file to another of the same file does nothing (rename(2)).
            os.unlink(f"{_ASIDE}/{path}", dir_fd=self._root)
        if self._sync_folders:
            self._folders.sync(path.rpartition("/")[0])
        self._folders.tidy(f"{_ASIDE}/{path}".rpartition("/")[0])

    def forget(self, path: str) -> None:
        os.unlink(f"{_ASIDE}/{path}", dir_fd=self._root)
        self._folders.tidy(f"{_ASIDE}/{path}".rpartition("/")[0])

    def set_aside(self) -> list[tuple[str, Holder]]:
        found = []
        top = self._folders.at(_ASIDE)
        for folder, _, names in os.walk(top, topdown=False):
            inside = Path(folder).relative_to(top).as_posix()
            if not names:
                self._folders.tidy(f"{_ASIDE}/{inside}")
            for name in names:
                path = name if inside == "." else f"{inside}/{name}"
                holder = self.holder(f"{_ASIDE}/{path}")
                if holder is not None:
                    found.append((path, holder))
        return found

    def digest_aside(self, path: str, holder: Holder) -> str:
        return self.digest(f"{_ASIDE}/{path}", holder)

    # Walking

    def files(self, *, before: float) -> Iterator[str]:
        """Every file that is visible, but those changed later than a time.

        :param before: seconds since the epoch (UTC)
        """
        top = self._folders.at("")
        for folder, folders, names in os.walk(top):
            inside = Path(folder).relative_to(top).as_posix()
            if inside == ".":
                inside = ""
                folders[:] = [name for name in folders if name != _INCOMING]
            folders.sort()
            for name in sorted(names):
                path = f"{inside}/{name}" if inside else name
                with contextlib.suppress(FileNotFoundError):
                    if os.stat(path, dir_fd=self._root, follow_symlinks=False).st_ctime <= before:
                        yield path

    def files_since(self, since: float, depth: int) -> Iterator[str]:
        """Every file in a folder in which a name was given since a time.

        :param since: seconds since the epoch (UTC)
        :param depth: how many folders a file lies in; only they are looked into
        """
        yield from self._files_since("", since, depth)
        with contextlib.suppress(FileNotFoundError):
            yield from self._files_since(QUARANTINE, since, depth)

    def _files_since(self, folder: str, since: float, depth: int) -> Iterator[str]:
        if not depth and os.stat(folder or ".", dir_fd=self._root).st_mtime < since:
            return
        with os.scandir(self._folders.at(folder)) as entries:
            found = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False) == bool(depth))
        for name in found:
            path = f"{folder}/{name}" if folder else name
            if not depth:
                yield path
            elif path not in (_INCOMING, QUARANTINE):
                with contextlib.suppress(FileNotFoundError):
                    yield from self._files_since(path, since, depth - 1)

    # Removing, settling, space

    def remove(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path, dir_fd=self._root)
        self._folders.tidy(path.rpartition("/")[0])

    @property
    def syncs_names(self) -> bool:
        return self._sync_folders

    def settle_names(self, folder: str) -> None:
        # It may have been made anew since it was prepared, by another store that has not synced its entry yet.
        self._folders.prepare(folder)
        if self._sync_folders:
            self._folders.sync(folder)

    def settle(self, path: str) -> None:
        if self._sync_files:
            with self._reading(path) as descriptor:
                os.fdatasync(descriptor)
        self.settle_names(path.rpartition("/")[0])

    def free_bytes(self) -> int:
        return self._space.free()

    def take(self, size: int) -> None:
        self._space.take(size)

    def __repr__(self) -> str:
        how = "closed" if self._root < 0 else "unnamed files" if self._unnamed else "temporary names"
        return f"<Directory {str(self._folders.root)!r}: {how}>"


def _is_memory(descriptor: int) -> bool:
    """Whether a folder lies on a file system in memory (proc_pid_mountinfo(5))."""
    device = os.fstat(descriptor).st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, _, kind = line.partition(" - ")
            if mount.split()[2] == name:
                return kind.split()[0] in ("tmpfs", "ramfs")
    return False


def _pieces(parts: Sequence[Buffer]) -> Iterator[bytes]:
    # Copied, because bytes are compared at once and views one byte after the other.
    for part in parts:
        for at in range(0, len(part), _CHUNK):
            yield bytes(part[at : at + _CHUNK])


def _ours(data: Content) -> Sequence[Buffer] | FileDraft:
    if isinstance(data, Draft) and not isinstance(data, FileDraft):
        raise TypeError("a draft that was begun elsewhere")
    return data


def _note(steps: Steps, step: str, started: float) -> float:
    now = time.perf_counter()
    steps.append((step, now - started))
    return now


def _discard(path: str, root: int) -> None:
    """Take a name back on the way out of an error. What cannot be taken back was never acknowledged, and is swept or
    adopted later; the first error is the one to report."""
    with contextlib.suppress(OSError):
        os.unlink(path, dir_fd=root)


def _holder(head: bytes, file_size: int) -> Holder:
    """Read the File Meta Information of a file (PS3.10 section 7.1); empty when it is none of ours."""
    values: dict[int, bytes] = {}
    offset = 0
    if head[128:132] == b"DICM" and head[132:140] == b"\x02\0\0\0UL\x04\0":
        offset = 144 + int.from_bytes(head[140:144], "little")
        with contextlib.suppress(DatasetError):
            values = scan(memoryview(head)[144:offset], explicit=True, little_endian=True, wanted=_META, last=0x0002FFFF)
    uids = {tag: value.decode("ascii", "replace").strip("\0 ") for tag, value in values.items()}
    return Holder(
        uids.get(0x00020003, ""),
        uids.get(0x00020002, ""),
        uids.get(0x00020010, ""),
        uids.get(0x00020016, ""),
        offset,
        max(file_size - offset, 0),
    )
