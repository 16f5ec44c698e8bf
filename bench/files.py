"""Files that last: whole or not at all, on the disk before the call returns, every failure to write one clear error."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from bench.errors import CannotWrite

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
"""What the system says when there is no space, or none left for this user."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn whatever the system says against writing ``path`` into :class:`~bench.errors.CannotWrite`."""
    try:
        yield
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CannotWrite:
    """Return the error that says that, why, and what to do."""
    hint = "name another folder: --results DIR"
    if error.errno in FULL | {errno.EFBIG, errno.EIO, errno.EMFILE, errno.ENFILE}:
        hint = "see to that, then give the same command again: it goes on where it stopped"
    return CannotWrite(f"cannot write {path}: {error.strerror or error}", hint=hint)


def plain(path: Path) -> Path:
    """Return ``path``, which is about to be read, unless a device or a pipe, which may wait for ever, is there.

    Then ``OSError`` is raised; a folder is left to the reader, whose error names it.
    """
    kind = path.stat().st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
        raise OSError(errno.EINVAL, "it is no plain file")
    return path


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    temporary = temporary_of(path)
    with writing(path), replacing(temporary, path):
        temporary.write_text(text, encoding="utf-8")


def temporary_of(path: Path) -> Path:
    """Return the name under which this process prepares ``path``: hidden, and of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


@contextlib.contextmanager
def replacing(temporary: Path, path: Path) -> Iterator[None]:
    """Put ``temporary``, which the caller writes meanwhile, in the place of ``path``, and both names on the disk.

    What was there is whole until then, also through a power cut; a failure leaves no temporary file.
    """
    try:
        yield
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync(path: Path) -> None:
    """Wait until the content of a file is on the disk."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in ``folder`` are on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append(path: Path, line: bytes) -> None:
    """Append ``line``, which ends with a newline, to a file; it is on the disk when this returns.

    A last line that a kill cut is dropped before, and what a failure wrote of this one after: lines stay lines.
    """
    made = not path.exists()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        end = _drop_cut_line(descriptor)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(descriptor, end)
            raise
    finally:
        os.close(descriptor)
    if made:
        sync_folder(path.parent)


def _drop_cut_line(descriptor: int) -> int:
    """Cut off what follows the last newline; return where the file ends then."""
    end = position = os.fstat(descriptor).st_size
    while position > 0:
        start = max(0, position - 65536)
        block = os.pread(descriptor, position - start, start)
        if (found := block.rfind(b"\n")) >= 0:
            position = start + found + 1
            break
        position = start
    if position < end:
        os.ftruncate(descriptor, position)
    return position


def archive_fault(path: Path) -> str:
    """Return what is wrong with a zip archive, such as a checkpoint: torch looks at no checksum when it loads one."""
    try:
        with zipfile.ZipFile(plain(path)) as archive:
            name = archive.testzip()
    except Exception as error:  # noqa: BLE001 - what a damaged file makes the library raise is no closed set
        return str(error) or type(error).__name__
    return f"{name} is not what was written" if name is not None else ""
