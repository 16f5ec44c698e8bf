"""Zip archives of bytes: the plain ones that a bundle is, and every kind that nobody should unpack."""

from __future__ import annotations

import stat
import struct
import zlib
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

from fuzzing import hostile, mutate

END, CENTRAL, LOCAL = struct.Struct("<4s4H2IH"), struct.Struct("<4s6H3I5H2I"), struct.Struct("<4s5H3I2H")
NAMES = (
    "../escaped",
    "../../../../var/escaped",
    "runs/../../escaped",
    "/var/escaped",
    "C:\\escaped",
    "..\\escaped",
    "runs//x",
    "./manifest.json",
    "MANIFEST.JSON",
    "manifest.json/",
    "manifest.json\0.txt",
    "mánifest.json",
    "runs/" + "a" * 20 + "/trial.json",
    "sources/x/fuzz_canary.py",
    "sources/../x.py",
    "sources/lion/__import__.py",
    "protocols/../../x-000000000000.json",
    "\x1b[31m",
    "",
    ".",
    "a" * 70_000,
)
KINDS = (stat.S_IFLNK, stat.S_IFDIR, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK)


@dataclass
class Member:
    """One member, its two headers to be written as the fields say, right or wrong."""

    name: bytes
    content: bytes
    method: int = 0
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def packed(self) -> bytes:
        """The bytes as they lie in the archive."""
        return _deflated(self.content) if self.method == 8 else self.content


@lru_cache(maxsize=256)
def _deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def archive(members: list[Member], changes: dict[str, Any] | None = None) -> bytes:
    """Return an archive; ``changes`` are made to its end record."""
    content, table = bytearray(), bytearray()
    for member in members:
        packed = member.packed
        facts = {
            "flags": 0,
            "method": member.method,
            "crc": zlib.crc32(member.content),
            "packed": len(packed),
            "size": len(member.content),
            "attributes": (stat.S_IFREG | 0o644) << 16,
            "offset": len(content),
            "extra": b"",
            "comment": b"",
        }
        own = facts | {key: value for key, value in member.changes.items() if not key.startswith("listed ")}
        listed = own | {key[7:]: value for key, value in member.changes.items() if key.startswith("listed ")}
        content += _local(member.name, own) + member.name + own["extra"] + packed
        table += _central(member.name, listed) + member.name + listed["extra"] + listed["comment"]
    facts = {"count": len(members), "size": len(table), "start": len(content), "comment": b"", "disk": 0} | (
        changes or {}
    )
    count, comment = facts["count"] & 0xFFFF, facts["comment"]
    size, start = facts["size"] & 0xFFFFFFFF, facts["start"] & 0xFFFFFFFF
    return bytes(
        content + table + END.pack(b"PK\5\6", facts["disk"], 0, count, count, size, start, len(comment)) + comment
    )


def _local(name: bytes, facts: dict[str, Any]) -> bytes:
    sizes = (facts["crc"], facts["packed"], facts["size"])
    return LOCAL.pack(
        b"PK\3\4", 20, facts["flags"], facts["method"], 0, 33, *sizes, len(name) & 0xFFFF, len(facts["extra"])
    )


def _central(name: bytes, facts: dict[str, Any]) -> bytes:
    sizes = (facts["crc"], facts["packed"] & 0xFFFFFFFF, facts["size"] & 0xFFFFFFFF)
    lengths = (len(name) & 0xFFFF, len(facts["extra"]), len(facts["comment"]))
    made = (3 << 8 | 20, 20, facts["flags"], facts["method"], 0, 33)
    return CENTRAL.pack(b"PK\1\2", *made, *sizes, *lengths, 0, 0, facts["attributes"], facts["offset"] & 0xFFFFFFFF)


def hostile_archive(random: Random, files: dict[str, bytes]) -> bytes:
    """Return an archive of ``files`` with something in it that no bundle has."""
    members = [Member(name.encode(), content, 8) for name, content in files.items()]
    for _ in range(random.choice((1, 1, 2))):
        _WAYS[random.choice(list(_WAYS))](random, members)
    changes: dict[str, Any] = {}
    kind = random.random()
    if kind < 0.15:
        key = random.choice(("count", "size", "start", "disk"))
        changes[key] = random.choice((0, 1, 0xFFFE, 0xFFFF) if key == "disk" else (0, 1, 65535, 2**31, 2**32 - 1))
    elif kind < 0.2:
        changes["comment"] = random.randbytes(random.choice((1, 22, 65535)))
    found = archive(members, changes)
    kind = random.random()
    if kind < 0.05:
        return random.choice((b"MZ", b"#!/bin/sh\n", b"PK\3\4", found)) + found
    return found + random.choice((b"\0", b"PK\5\6", found)) if kind < 0.1 else found


def _named(random: Random, members: list[Member]) -> None:
    name = random.choice(NAMES) if random.random() < 0.7 else hostile.text(random)
    members.insert(
        random.randrange(len(members) + 1), Member(name.encode(errors="replace")[:65_000], b"import fuzz_canary")
    )


def _renamed(random: Random, members: list[Member]) -> None:
    member = random.choice(members)
    member.name = mutate.text(random, member.name.decode(errors="replace")).encode(errors="replace")[:65_000]


def _twice(random: Random, members: list[Member]) -> None:
    member = random.choice(members)
    name = member.name if random.random() < 0.5 else member.name.swapcase()
    members.append(Member(name, random.choice((member.content, b"{}")), 8))


def _kind(random: Random, members: list[Member]) -> None:
    random.choice(members).changes["attributes"] = random.choice(KINDS) << 16 | random.choice((0, 0x10, 0o777 << 16))


def _bomb(random: Random, members: list[Member]) -> None:
    size = random.choice((2**20, 2**22))
    bomb = Member(random.choice((b"trials.parquet", b"manifest.json", b"x")), bytes(size), 8)
    if random.random() < 0.5:
        bomb.changes["size"] = random.choice((0, 10, 2**31, 2**32 - 1))
    members[random.randrange(len(members))] = bomb


def _overlap(random: Random, members: list[Member]) -> None:
    member = random.choice(members)
    member.changes["listed offset"] = random.choice((0, 1, 10, 2**31, 2**32 - 2))


def _field(random: Random, members: list[Member]) -> None:
    key = random.choice(("flags", "method", "crc", "packed", "size"))
    values = (0, 1, 8, 9, 12, 14, 99, 0x800, 0xFFFF) if key in {"flags", "method"} else (0, 1, 2**31, 2**32 - 1)
    random.choice(members).changes[random.choice(("", "listed ")) + key] = random.choice(values)


def _extra(random: Random, members: list[Member]) -> None:
    extra = random.choice((b"\1\0\x10\0" + b"\xff" * 16, b"up\0\0", random.randbytes(30)))
    random.choice(members).changes[random.choice(("extra", "listed extra", "listed comment"))] = extra


def _many(random: Random, members: list[Member]) -> None:
    members += [Member(b"%d" % number, b"") for number in range(random.choice((100, 2_000, 70_000)))]


def _fewer(random: Random, members: list[Member]) -> None:
    del members[random.randrange(len(members))]


_WAYS = {
    "named": _named,
    "renamed": _renamed,
    "twice": _twice,
    "kind": _kind,
    "bomb": _bomb,
    "overlap": _overlap,
    "field": _field,
    "extra": _extra,
    "many": _many,
    "fewer": _fewer,
}
