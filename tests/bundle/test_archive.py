"""Archives that nobody should open are refused, each with its reason; nothing is written and nothing runs away."""

from __future__ import annotations

import io
import stat
import struct
import zipfile

import pytest

from bench.bundle import archive, limits, read, verify
from bench.bundle.packing import zip_of
from bench.errors import BadBundle

END = 22


def made(*members, compression=zipfile.ZIP_DEFLATED, **facts):
    """Return an archive of ``(name, content)`` or ``(ZipInfo, content)``."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            member = name if isinstance(name, zipfile.ZipInfo) else zipfile.ZipInfo(name)
            member.compress_type = compression
            for key, value in facts.items():
                setattr(member, key, value)
            file.writestr(member, content)
    return buffer.getvalue()


def named(name):
    """Return an archive whose one member has a name that zipfile itself would clean."""
    return made(("x" * len(name), b"1")).replace(b"x" * len(name), name.encode("latin-1"))


def patched(content, offset, form, value):
    """Return ``content`` with a field of its end record (counted from there) overwritten."""
    raw = bytearray(content)
    struct.pack_into(form, raw, len(raw) - END + offset, value)
    return bytes(raw)


def central(content, offset, form, value, number=0):
    """Return ``content`` with a field of an entry of its directory overwritten."""
    raw, start = bytearray(content), content.find(b"PK\x01\x02")
    for _ in range(number):
        start = content.find(b"PK\x01\x02", start + 4)
    struct.pack_into(form, raw, start + offset, value)
    return bytes(raw)


def local(content, offset, form, value):
    raw = bytearray(content)
    struct.pack_into(form, raw, offset, value)
    return bytes(raw)


def with_descriptor():
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

        def seek(self, *_):
            raise OSError

        def tell(self):
            raise OSError

    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w") as file:
        file.writestr("manifest.json", "{}")
    return pipe.getvalue()


def folder():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.mkdir("runs")
    return buffer.getvalue()


ONE, TWO = made(("a", b"1" * 50)), made(("a", b"1" * 50), ("b", b"2" * 50))
HOSTILE = {
    "nothing": (b"", "is no zip file"),
    "text": (b"this is no archive, and long enough to be one", "is no zip file"),
    "half": (TWO[: len(TWO) // 2], "is no zip file"),
    "something after the end": (ONE + b"#!/bin/sh\n", "bytes after its end"),
    "something before the start": (b"MZ" + ONE, "does not lie where its end record says"),
    "a comment": (ONE[:-2] + b"\x04\x00abcd", "a comment"),
    "one of several": (patched(ONE, 4, "<H", 1), "one part of several"),
    "zip64": (patched(patched(ONE, 8, "<H", 0xFFFF), 10, "<H", 0xFFFF), "zip64"),
    "a huge count": (patched(patched(ONE, 8, "<H", 60_000), 10, "<H", 60_000), "60,000 members"),
    "a wrong count": (patched(patched(TWO, 8, "<H", 1), 10, "<H", 1), "lists other members"),
    "too few in the directory": (patched(patched(ONE, 8, "<H", 2), 10, "<H", 2), "lists 1 members and counts 2"),
    "a parent folder": (named("../../etc/passwd"), "leads elsewhere"),
    "a parent folder within": (named("runs/../../x"), "leads elsewhere"),
    "the folder itself": (named("./manifest.json"), "leads elsewhere"),
    "an absolute name": (named("/etc/cron.d/x"), "absolute name"),
    "a drive": (named("C:/x"), "absolute name"),
    "a backslash": (named("..\\x"), "backslash"),
    "a null byte": (named("manifest.json\0.py"), "unprintable"),
    "an escape": (named("\x1b[2Jx"), "unprintable"),
    "another alphabet": (made(("mаnifest.json", b"1")), "unprintable"),
    "no name": (made(("", b"1")), "0 characters"),
    "a name beyond the directory": (central(ONE, 28, "<H", 999), "damaged directory"),
    "a long name": (made(("x" * 300, b"1")), "300 characters"),
    "a name twice": (made(("b", b"1"), ("a", b"2")).replace(b"b", b"a"), "twice"),
    "two names but for case": (made(("A", b"1"), ("a", b"2")), "differ in case"),
    "a link": (made(("a", b"/etc/passwd"), external_attr=(stat.S_IFLNK | 0o777) << 16), "no plain file"),
    "a device": (made(("a", b""), external_attr=(stat.S_IFCHR | 0o666) << 16), "no plain file"),
    "a folder": (folder(), "no plain file"),
    "a folder of DOS": (made(("a", b""), external_attr=0x10), "no plain file"),
    "an encrypted member": (central(local(ONE, 6, "<H", 1), 8, "<H", 1), "encrypted"),
    "sizes that come later": (with_descriptor(), "flags"),
    "bzip2": (made(("a", b"1" * 99), compression=zipfile.ZIP_BZIP2), "packed by method 12"),
    "an extra field": (made(("a", b"1"), extra=b"\x99\x99\x04\x00abcd"), "extra fields"),
    "a comment of a member": (made(("a", b"1"), comment=b"look here"), "comment"),
    "two headers": (local(ONE, 14, "<I", 0), "two things"),
    "a wrong checksum": (central(local(ONE, 14, "<I", 0), 16, "<I", 0), "damaged member"),
    "a smaller size": (central(local(ONE, 22, "<I", 10), 24, "<I", 10), "another size"),
    "a larger size": (central(local(ONE, 22, "<I", 60), 24, "<I", 60), "damaged member"),
    "an overlap": (central(TWO, 42, "<I", 0, number=1), "overlap or leave gaps"),
    "a gap": (central(TWO, 42, "<I", 9, number=1), "overlap or leave gaps"),
    "a member in the directory": (central(ONE, 20, "<I", 10**6), "two things"),
    "a bomb": (made(("a", b"0" * 20 * 2**20)), "200 times its size"),
    "a bomb of many": (made(*((f"{i}", bytes(2**20)) for i in range(600)), compression=zipfile.ZIP_DEFLATED), "unpack"),
    "a member too large": (central(local(ONE, 22, "<I", 2**31), 24, "<I", 2**31), "2,147,483,648 bytes"),
    "an unknown member": (zip_of({"manifest.json": b"{}", "setup.py": b"1"}), "no member 'setup.py'"),
    "a member below a file": (zip_of({"runs/x/../y": b""}), "leads elsewhere"),
    "no manifest": (zip_of({"trials.parquet": b"", "curves.parquet": b""}), "no manifest.json"),
    "no bundle": (zip_of({"manifest.json": b"{}"}), "no trials.parquet"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_with_its_reason_and_nothing_is_written(tmp_path, monkeypatch, kind):
    content, reason = HOSTILE[kind]
    path = tmp_path / "hostile.zip"
    path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadBundle) as raised:
        read(path)
    assert reason in raised.value.message
    verdict = verify(path)
    assert (verdict.verdict, len(verdict.reasons)) == ("reject", 1)
    assert reason in verdict.reasons[0]
    assert [item.name for item in tmp_path.iterdir()] == ["hostile.zip"]


def test_what_pack_writes_is_read_back_and_nothing_else_was_unpacked():
    files = {"manifest.json": b"{}", "runs/a": b"1" * 10_000, "empty": b""}
    assert archive.members(zip_of(files)) == files


def test_a_file_that_is_not_there_or_too_large_is_a_user_error(tmp_path, monkeypatch):
    with pytest.raises(BadBundle, match="there is no file"):
        verify(tmp_path / "none.zip")
    with pytest.raises(BadBundle, match="there is no file"):
        read(tmp_path)
    monkeypatch.setattr(limits, "FILE_BYTES", 10)
    (tmp_path / "large.zip").write_bytes(b"1" * 11)
    with pytest.raises(BadBundle, match="more than 10 bytes"):
        read(tmp_path / "large.zip")
