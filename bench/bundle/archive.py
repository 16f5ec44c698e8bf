"""Open a zip file that a stranger made: in memory, in the one form that ``bench pack`` writes, and nothing else.

The rules of zip leave room for files that two readers see differently. So this one asks for the plainest form there is:
members follow each other without gaps from the first byte, then the central directory, then its end record; the two
headers of a member agree; nothing is encrypted, split, appended or described later. Nothing is written anywhere.
"""

from __future__ import annotations

import re
import stat
import struct
import zlib
from dataclasses import dataclass
from typing import NoReturn

from bench.bundle import limits
from bench.errors import BadBundle

_END, _CENTRAL, _LOCAL = struct.Struct("<4s4H2IH"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _DESCRIBED_LATER, _UTF8 = 0x1, 0x8, 0x800
_DEFLATE_LEVEL = 0x6  # two bits that say how hard the writer tried
_DOS_FOLDER = 0x10
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class _Member:
    """What the central directory says of one file."""

    name: str
    raw_name: bytes
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    offset: int


def members(content: bytes) -> dict[str, bytes]:
    """Return the files in the archive ``content``, name to content, in their order.

    Raises:
        BadBundle: it is no such archive, or one that nobody should unpack.
    """
    count, start, size = _end_record(content)
    listed = _directory(content[start : start + size], count)
    _check_names([member.name for member in listed])
    if sum(member.size for member in listed) > limits.TOTAL_BYTES:
        _refuse(f"would unpack to {sum(m.size for m in listed):,} bytes; at most {limits.TOTAL_BYTES:,} are read")
    found, position = {}, 0
    for member in listed:
        if member.offset != position:
            _refuse(f"has members that overlap or leave gaps: {member.name!r} begins at byte {member.offset}")
        packed, position = _packed(content, member, start)
        found[member.name] = _unpacked(member, packed)
    if position != start:
        _refuse("has bytes between its last member and its directory")
    return found


def _refuse(what: str) -> NoReturn:
    raise BadBundle(f"the archive {what}", hint="a bundle is what bench pack writes, unchanged")


def _end_record(content: bytes) -> tuple[int, int, int]:
    """Return how many members there are, and where the directory begins and how long it is."""
    if len(content) < _END.size or b"PK\x05\x06" not in content[-_END.size - 0x10000 :]:
        _refuse("is no zip file, or its end is missing")
    signature, disk, first, here, count, size, start, comment = _END.unpack(content[-_END.size :])
    if signature != b"PK\x05\x06" or comment:
        _refuse("has a comment, or bytes after its end")
    if disk or first or here != count:
        _refuse("is one part of several")
    if count == 0xFFFF or 0xFFFFFFFF in {size, start}:
        _refuse("is in the zip64 form")
    if count > limits.MEMBERS:
        _refuse(f"has {count:,} members; at most {limits.MEMBERS:,} are read")
    if start + size != len(content) - _END.size:
        _refuse("has a directory that does not lie where its end record says")
    return count, start, size


def _directory(table: bytes, count: int) -> list[_Member]:
    found: list[_Member] = []
    position = 0
    while position < len(table):
        if len(found) == count or len(table) - position < _CENTRAL.size:
            _refuse(f"lists other members than the {count} of its end record")
        fields = _CENTRAL.unpack_from(table, position)
        position += _CENTRAL.size
        length = fields[10]
        raw = table[position : position + length]
        if fields[0] != b"PK\x01\x02" or len(raw) < length:
            _refuse("has a damaged directory")
        found.append(_listed(fields, raw))
        position += length
    if len(found) != count:
        _refuse(f"lists {len(found)} members and counts {count}")
    return found


def _listed(fields: tuple[int, ...], raw: bytes) -> _Member:
    """Check one entry of the directory."""
    flags, method, crc, packed, size = fields[3], fields[4], fields[7], fields[8], fields[9]
    extra, comment, disk, attributes, offset = fields[11], fields[12], fields[13], fields[15], fields[16]
    name = raw.decode("ascii", "backslashreplace")
    kind = stat.S_IFMT(attributes >> 16)
    if flags & _ENCRYPTED:
        _refuse(f"has an encrypted member: {name!r}")
    if flags & _DESCRIBED_LATER or flags & ~(_UTF8 | _DEFLATE_LEVEL):
        _refuse(f"has a member with the flags {flags:#x}: {name!r}")
    if method not in {_STORED, _DEFLATED}:
        _refuse(f"has a member packed by method {method}, not deflate: {name!r}")
    if kind not in {0, stat.S_IFREG} or attributes & _DOS_FOLDER or name.endswith("/"):
        _refuse(f"has a member that is no plain file (a link, a folder, a device): {name!r}")
    if extra or comment or disk:
        _refuse(f"has a member with extra fields or a comment: {name!r}")
    if size > limits.MEMBER_BYTES:
        _refuse(f"has a member of {size:,} bytes; at most {limits.MEMBER_BYTES:,} are read: {name!r}")
    if size > limits.RATIO_FROM_BYTES and size > limits.RATIO * packed:
        _refuse(f"has a member that unpacks to more than {limits.RATIO} times its size: {name!r}")
    if method == _STORED and size != packed:
        _refuse(f"has a stored member of two sizes: {name!r}")
    return _Member(name, raw, flags, method, crc, packed, size, offset)


def _check_names(names: list[str]) -> None:
    seen: dict[str, str] = {}
    for name in names:
        _check_name(name)
        folded = name.casefold()
        if folded in seen:
            other = seen[folded]
            same = other == name
            _refuse(f"has the member {name!r} twice" if same else f"has {other!r} and {name!r}, which differ in case")
        seen[folded] = name


def _check_name(name: str) -> None:
    if not name or len(name) > limits.NAME_CHARACTERS:
        _refuse(f"has a member whose name has {len(name)} characters: {name[:60]!r}")
    if "\\" in name or not name.isascii() or not name.isprintable():
        _refuse(f"has a member with a backslash or an unprintable character in its name: {name!r}")
    if name.startswith("/") or _DRIVE.match(name):
        _refuse(f"has a member with an absolute name: {name!r}")
    if any(part in {"", ".", ".."} for part in name.split("/")):
        _refuse(f"has a member whose name leads elsewhere: {name!r}")


def _packed(content: bytes, member: _Member, end: int) -> tuple[bytes, int]:
    """Return the packed bytes of ``member``, and where they end; its own header must say what the directory says."""
    begin = member.offset + _LOCAL.size
    if begin > end:
        _refuse(f"has a member outside the file: {member.name!r}")
    signature, _, flags, method, _, _, crc, packed, size, length, extra = _LOCAL.unpack_from(content, member.offset)
    own = (flags, method, crc, packed, size, extra, content[begin : begin + length])
    listed = (member.flags, member.method, member.crc, member.packed, member.size, 0, member.raw_name)
    if signature != b"PK\x03\x04" or own != listed:
        _refuse(f"says two things of one member: {member.name!r}")
    begin += length
    if begin + packed > end:
        _refuse(f"has a member that reaches beyond the others: {member.name!r}")
    return content[begin : begin + packed], begin + packed


def _unpacked(member: _Member, packed: bytes) -> bytes:
    if member.method == _STORED:
        data = packed
    else:
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = unpacker.decompress(packed, member.size + 1)  # never more than was declared, and was checked
        except zlib.error:
            _refuse(f"has a damaged member: {member.name!r}")
        if not unpacker.eof or unpacker.unconsumed_tail or unpacker.unused_data:
            _refuse(f"has a member of another size than it says: {member.name!r}")
    if len(data) != member.size or zlib.crc32(data) != member.crc:
        _refuse(f"has a damaged member: {member.name!r}")
    return data
