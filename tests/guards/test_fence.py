"""What the fence refuses, whom it lets pass, and what is remembered of a refusal that was swallowed."""

# ruff: noqa: ARG005, PTH208, PLW0108 - a list of acts, each of which takes the folders

from __future__ import annotations

import contextlib
import gc
import os
import socket
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench.errors import GuardTripped
from bench.guards.fence import FENCE


@pytest.fixture
def folders(tmp_path) -> Iterator[dict[str, Path]]:
    """An armed fence: folders that are hidden, writable, and neither."""
    made = {name: tmp_path / name for name in ("hidden", "private", "other")}
    for folder in made.values():
        folder.mkdir()
        (folder / "file").write_text("text")
    FENCE.arm((str(made["hidden"]),), (str(made["private"]),), ("a_plugin.",))
    yield made
    FENCE.disarm()


@pytest.fixture
def in_slot(folders) -> Callable[[], contextlib.AbstractContextManager[None]]:
    del folders
    return lambda: FENCE.around("algorithm.slot")


def plugin(source: str) -> Callable[..., object]:
    """Return the function ``f`` of ``source``, as a module of the package ``a_plugin`` would hold it."""
    module = types.ModuleType("a_plugin.module")
    exec(compile(source, "a_plugin/module.py", "exec"), vars(module))  # noqa: S102 - our own text
    return module.f


REFUSED = {
    "reads": lambda at: (at["hidden"] / "file").read_text(),
    "reads by descriptor": lambda at: os.open(at["hidden"] / "file", os.O_RDONLY),
    "reads through a link": lambda at: (at["private"] / "link").read_text(),
    "reads relatively": lambda at: Path(os.path.relpath(at["hidden"] / "file")).read_text(),
    "lists": lambda at: os.listdir(at["hidden"]),
    "scans": lambda at: list(os.scandir(str(at["hidden"]).encode())),
    "globs": lambda at: list(at["hidden"].glob("*")),
    "writes": lambda at: (at["other"] / "new").write_text("x"),
    "appends": lambda at: (at["other"] / "file").open("a"),
    "removes": lambda at: (at["other"] / "file").unlink(),
    "renames": lambda at: (at["other"] / "file").rename(at["other"] / "moved"),
    "makes a folder": lambda at: (at["other"] / "new").mkdir(),
    "links": lambda at: (at["other"] / "new").symlink_to(at["other"] / "file"),
    "reads its parent's command": lambda at: Path(f"/proc/{os.getppid()}/cmdline").read_bytes(),
    "reads its own command": lambda at: Path("/proc/self/cmdline").read_bytes(),
    "reads the first environment": lambda at: Path("/proc/self/environ").read_bytes(),
    "asks for an address": lambda at: socket.getaddrinfo("localhost", 9),
    "connects": lambda at: socket.create_connection(("127.0.0.1", 9)),
    "counts objects": lambda at: gc.get_objects(),
    "asks who refers": lambda at: gc.get_referrers(at),
    "sees other threads": lambda at: sys._current_frames(),
}


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED.keys())
def test_refusal_is_raised_and_remembered(folders, in_slot, act):
    (folders["private"] / "link").symlink_to(folders["hidden"] / "file")
    with in_slot():
        with pytest.raises(GuardTripped, match=r"algorithm\.slot "):
            act(folders)
        assert [folder.name for folder in folders["other"].iterdir()] == ["file"]
    with pytest.raises(GuardTripped, match=r"^algorithm\.slot (reached|looked|wrote|changed|called)"):
        FENCE.check()


FRAMES = {
    "frame": "import sys\ndef f(): return sys._getframe(1)",
    "inspect": "import inspect\ndef f(): return inspect.currentframe()",
    "stack": "import inspect\ndef f(): return inspect.stack()",
    "traceback": "def f():\n try: 1/0\n except ZeroDivisionError as error: return error.__traceback__.tb_frame",
    "generator": "def g(): yield\ndef f(): return g().gi_frame",
    "trace": "import sys\ndef f(): sys.settrace(None)",
    "profile": "import sys\ndef f(): sys.setprofile(None)",
}


@pytest.mark.parametrize("source", FRAMES.values(), ids=FRAMES.keys())
def test_frames_are_refused_to_plugins_and_given_to_libraries(in_slot, source):
    act, module = plugin(source), types.ModuleType("a_library")
    exec(compile(source, "a_library.py", "exec"), vars(module))  # noqa: S102 - our own text
    before = sys.gettrace(), sys.getprofile()
    with in_slot():
        if source not in (FRAMES["trace"], FRAMES["profile"]):  # they would end the coverage of this test
            module.f()
        with pytest.raises(GuardTripped, match=r"algorithm\.slot (called sys\.|asked for a frame)"):
            act()
    assert (sys.gettrace(), sys.getprofile()) == before


ALLOWED = {
    "reads elsewhere": lambda at: (at["other"] / "file").read_text(),
    "writes in its folder": lambda at: (at["private"] / "new").write_text("x"),
    "lists its folder": lambda at: os.listdir(at["private"]),
    "throws away": lambda at: Path(os.devnull).write_text("x"),
}


@pytest.mark.parametrize("act", ALLOWED.values(), ids=ALLOWED.keys())
def test_what_is_in_bounds_passes(folders, in_slot, act):
    with in_slot():
        act(folders)
    FENCE.check()


def test_bounds_hold_for_slots_alone(folders, in_slot):
    (folders["hidden"] / "file").read_text()
    with in_slot(), FENCE.around(""):
        (folders["hidden"] / "file").write_text("the workload's own")
    FENCE.check()


def test_thread_of_the_workload_passes_and_one_of_the_plugin_does_not(folders, in_slot):
    answers: list[object] = []

    def read() -> None:
        try:
            answers.append((folders["hidden"] / "file").read_text())
        except GuardTripped as error:
            answers.append(type(error))

    def own() -> None:
        FENCE.free.add(threading.get_ident())
        read()

    with in_slot():
        for what in (own, read):
            FENCE.free.clear()
            thread = threading.Thread(target=what)
            thread.start()
            thread.join()
    assert answers == ["text", GuardTripped]


def test_modules_are_compiled_while_a_slot_imports_them(folders, in_slot, monkeypatch):
    """Python keeps what it compiled beside the source: that is no plugin's doing."""
    (folders["other"] / "fresh_module.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(folders["other"]))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with in_slot():
        import fresh_module  # type: ignore[import-not-found]
    assert fresh_module.VALUE == 3
    assert list((folders["other"] / "__pycache__").iterdir())
    FENCE.check()


def test_folder_that_holds_python_itself_cannot_be_hidden(tmp_path):
    FENCE.arm((sys.prefix, str(tmp_path)), (), ())
    try:
        assert FENCE.hidden == (str(tmp_path),)
    finally:
        FENCE.disarm()


def test_audit_hook_is_refused_at_any_time(folders):
    del folders
    heard: list[str] = []
    sys.addaudithook(lambda event, _: heard.append(event))  # Python drops the hook and says nothing
    sys.audit("anything")
    assert heard == []
    with pytest.raises(GuardTripped, match="added an audit hook"):
        FENCE.check()
