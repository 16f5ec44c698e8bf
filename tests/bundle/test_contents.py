"""What is inside a bundle may be as hostile as its archive: JSON, event logs, Parquet, sources."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.bundle import limits, read
from bench.bundle.foreign_tables import read_tables
from bench.errors import BadBundle

SCHEMA = pa.schema([("trial_id", pa.string())], metadata={"bench_table": "toy"})


def damaged(forge, tmp_path, edit):
    bundle = forge()
    edit(bundle)
    return bundle.write(tmp_path / "damaged.zip")


def replace(name, old, new):
    def edit(bundle):
        full = next(path for path in sorted(bundle.files) if path.endswith(name))
        assert old in bundle.files[full]
        bundle.files[full] = bundle.files[full].replace(old, new, 1)

    return edit


def put(name, content):
    def edit(bundle):
        full = next((path for path in sorted(bundle.files) if path.endswith(name)), name)
        bundle.files[full] = content

    return edit


def manifest(**changes):
    return lambda bundle: bundle.set_manifest(**changes)


def rename_the_protocol(bundle):
    (name,) = [name for name in bundle.files if name.startswith("protocols/")]
    bundle.files["protocols/default-000000000000.json"] = bundle.files.pop(name)


DEEP = b"[" * 100_000 + b"]" * 100_000
DAMAGES = {
    "a key twice": (replace("trial.json", b'"seed":', b'"seed": 1, "seed":'), "given twice"),
    "a number that is none": (replace("events.jsonl", b'"step": 4,', b'"step": NaN,'), "no number of JSON"),
    "an infinite number": (replace("events.jsonl", b'"time_s": ', b'"time_s": 1e999'), "events.jsonl, line"),
    "a huge number": (replace("trial.json", b'"seed": ', b'"seed": ' + b"9" * 40), "seed"),
    "more digits than Python reads": (replace("trial.json", b'"seed": ', b'"seed": ' + b"9" * 5000), "no JSON"),
    "text for a number": (replace("trial.json", b'"study": 0', b'"study": "0"'), "study"),
    "depth": (put("trial.json", DEEP), "nested too deeply"),
    "half a surrogate pair": (replace("trial.json", b'"cpu-2"', b'"\\ud800"'), "trial.json"),
    "no UTF-8": (put("trial.json", b"\xff\xfe{}"), "no JSON"),
    "a list for a trial": (put("trial.json", b"[]"), "not as bench writes it"),
    "an unknown key": (replace("trial.json", b'"seed":', b'"evil": 1, "seed":'), "evil"),
    "an escape in a name": (replace("trial.json", b'"cpu-2"', b'"\\u001b[2J"'), "unprintable"),
    "a hyperparameter that is a list": (replace("trial.json", b'"lr": ', b'"evil": [1], "lr": '), "no number, text"),
    "a negative seed": (replace("trial.json", b'"seed": ', b'"seed": -1'), "seed"),
    "an event of another kind": (replace("events.jsonl", b'"event": "saved"', b'"event": "exec"'), "'exec'"),
    "a claim to be reproduced": (replace("events.jsonl", b'"event": "saved"', b'"event": "reproduced"'), "none of"),
    "a cut line": (replace("events.jsonl", b"}\n", b"}"), "line 1"),
    "an empty log": (put("events.jsonl", b""), "0 events"),
    "a log without facts": (replace("events.jsonl", b'"target": ', b'"aim": '), "target"),
    "a target that is none": (replace("events.jsonl", b'"target": 1.76', b'"target": "nan"'), "target"),
    "a time below zero": (replace("events.jsonl", b'"evaluation_s": ', b'"evaluation_s": -'), "evaluation_s"),
    "a protocol of another name": (rename_the_protocol, "whose name and hash"),
    "a protocol with points of text": (put("protocols/a-000000000000.json", b'{"points": "x"}\n'), "protocol"),
    "a null byte in a source": (replace("sgd.py", b"import", b"im\0port"), "null byte"),
    "a source that is no text": (put("sgd.py", b"\xff\xfe"), "no text in UTF-8"),
    "a keyword for a module": (put("sources/sgd/bench/class.py", b""), "no module"),
    "a module twice": (put("sources/sgd/bench/plugins/baselines/sgd/__init__.py", b""), "twice"),
    "a source of nobody": (put("sources/nobody/x.py", b""), "no algorithm"),
    "a trial without a log": (put("runs/00000000000000000000/trial.json", b"{}"), "no runs/0"),
    "a format to come": (manifest(format=2), "format 2"),
    "another kind of file": (manifest(bench="results"), "bench"),
    "a manifest with more in it": (manifest(evil=1), "evil"),
    "Parquet that is none": (put("trials.parquet", b"PAR1" * 10), "trials.parquet cannot be read"),
    "an empty table": (put("curves.parquet", b""), "curves.parquet cannot be read"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_damage_is_named_and_never_a_traceback(tmp_path, forge, kind):
    edit, reason = DAMAGES[kind]
    with pytest.raises(BadBundle) as raised:
        read(damaged(forge, tmp_path, edit))
    assert reason in raised.value.message


def test_manifest_and_members_must_agree(tmp_path, forge):
    from bench.bundle.packing import zip_of

    bundle = forge()
    bundle.seal()
    name = next(name for name in bundle.files if name.endswith("trial.json"))
    for files, reason in (
        ({**bundle.files, "sources/sgd/more.py": b""}, "is not in the manifest"),
        ({key: value for key, value in bundle.files.items() if key != name}, "not in the bundle"),
        ({**bundle.files, name: bundle.files[name] + b" "}, "bytes, and"),
        ({**bundle.files, name: bundle.files[name].replace(b"sgd", b"dgs", 1)}, "another SHA-256"),
    ):
        path = tmp_path / "other.zip"
        path.write_bytes(zip_of(files))
        with pytest.raises(BadBundle) as raised:
            read(path)
        assert reason in raised.value.message


# -- Parquet ---------------------------------------------------------------------------------------------------------
def parquet(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def refused(content, schema=SCHEMA):
    with pytest.raises(BadBundle) as raised:
        read_tables({"trials.parquet": content}, {"trials.parquet": schema})
    return raised.value.message


def test_a_table_that_would_unpack_to_terabytes_is_refused_before_it_takes_the_memory(monkeypatch):
    rows = 900_000
    long = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * 2_000_000]))
    bomb = parquet(pa.table({"trial_id": long}), compression="zstd", store_schema=False)
    assert len(bomb) < 10_000
    monkeypatch.setattr(limits, "CHILD_MEMORY_BYTES", 1 * 2**30)
    assert "trials.parquet" in refused(bomb)


def test_a_table_with_too_much_in_its_footer_is_refused(monkeypatch):
    table = pa.table({"trial_id": ["a"] * 50})
    monkeypatch.setattr(limits, "TABLE_ROWS", 40)
    assert "declares 50 rows" in refused(parquet(table))
    monkeypatch.setattr(limits, "TABLE_ROWS", 60)
    monkeypatch.setattr(limits, "TABLE_ROW_GROUPS", 3)
    assert "row groups" in refused(parquet(table, row_group_size=5))
    monkeypatch.setattr(limits, "TABLE_BYTES", 100)
    assert "at most 100 are read" in refused(parquet(table))


def test_a_table_of_other_columns_or_of_another_kind_is_refused():
    assert "other columns" in refused(parquet(pa.table({"trial_id": [1]})))
    assert "other columns" in refused(parquet(pa.table({"x": ["a"], "trial_id": ["a"]})))
    assert "other columns" in refused(parquet(pa.table({"trial_id": [["a"]]})))
    assert "not a table" in refused(parquet(pa.table({"trial_id": ["a"]})))


@pytest.mark.parametrize("seed", range(4))
def test_flipped_bits_are_a_reason_or_change_nothing(forge, seed):
    """A crash of the parser would be one too: it ends the child, and the parent only tells of it."""
    rng = random.Random(seed)
    content = forge().files["trials.parquet"]
    raw = bytearray(content)
    for _ in range(1 + 3 * (seed % 2)):
        raw[rng.randrange(len(raw) // 3, len(raw))] ^= 1 << rng.randrange(8)
    try:
        found = read_tables({"t": bytes(raw)}, {"t": pq.read_schema(io.BytesIO(content))})
    except BadBundle as error:
        found = {"refused": error.message}
    assert found


# -- nothing runs ----------------------------------------------------------------------------------------------------
AUDIT = textwrap.dedent(
    """
    import json, sys
    from bench.bundle import verify
    from bench.registry import Registry

    honest, hostile = sys.argv[1:]
    registry = Registry()
    verify(honest, registry)  # whatever is imported late by our own code is imported now
    seen = []

    def hook(event, arguments):
        if event in {"import", "compile", "exec", "open", "os.system", "socket.connect", "os.mkdir", "os.rename"} or (
            event.startswith(("subprocess", "os.exec", "os.posix_spawn", "shutil"))
        ):
            seen.append((event, [repr(argument)[:2000] for argument in arguments]))

    sys.addaudithook(hook)
    print(json.dumps({"verdict": verify(hostile, registry).verdict, "seen": seen, "modules": sorted(sys.modules)}))
    """
)


def test_nothing_of_a_bundle_is_imported_executed_or_written(tmp_path, honest, forge):
    marker = tmp_path / "was executed"
    code = f"open({str(marker)!r}, 'w').close()  # HOSTILE\n".encode()
    bundle = forge()
    modules = ("bench/plugins/baselines/sgd", "json", "antigravity", "stranger/__init__", "stranger/deep", "torch")
    for module in modules:
        bundle.files[f"sources/sgd/{module}.py"] = code
    hostile = bundle.write(tmp_path / "hostile.zip")
    done = subprocess.run(
        [sys.executable, "-P", "-c", AUDIT, str(honest["default"]), str(hostile)],
        capture_output=True,
        check=True,
        encoding="utf-8",
        cwd=tmp_path,
    )
    told = json.loads(done.stdout)
    assert told["verdict"] == "reject"
    assert not marker.exists()
    assert not {"stranger", "stranger.deep", "antigravity"} & set(told["modules"])
    seen = {}
    for event, arguments in told["seen"]:
        seen.setdefault(event, []).append(arguments)
    assert not any("HOSTILE" in argument for arguments in seen.get("compile", []) for argument in arguments)
    assert not any("sources/" in argument for arguments in seen.get("exec", []) for argument in arguments)
    assert not any(name[0].strip("'") in {"stranger", "antigravity"} for name in seen.get("import", []))
    writing = [name for name, mode, _ in seen["open"] if any(c in mode for c in "wax+") and not name.isdigit()]
    assert writing == [], "pipes to the child, which are numbers, are no files"
    assert len(seen["subprocess.Popen"]) == 1
    assert "table_child.py" in seen["subprocess.Popen"][0][1]
    assert not set(seen) & {"os.system", "socket.connect", "os.mkdir", "os.rename"}
