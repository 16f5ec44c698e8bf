"""Run chosen trials of a bundle again, and say whether its intervals hold here too."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench import provenance
from bench.bundle.agreement import Decision, Quantity, overall, quality, steps, steps_ratio, time_ratio
from bench.bundle.cases import cases
from bench.bundle.choice import SEEDS, Choice, choose
from bench.bundle.contents import Bundle, Run, read
from bench.bundle.foreign_plugin import write_site
from bench.bundle.isolation import environment, run_isolated
from bench.bundle.snapshot import facts_of
from bench.bundle.verdict import Verdict
from bench.bundle.verification import verify_bundle
from bench.devices import detect, parse_device
from bench.errors import BadBundle
from bench.event_log import jsonable
from bench.files import write_text, writing
from bench.registry import Registry
from bench.store import Store
from bench.trial import MEASURED, Trial

FOLDER = "reproductions"
"""The folder in the results that holds one record for each bundle that was run again."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a user asked for; ``seeds`` names them, else ``number`` are chosen with ``salt``."""

    number: int = SEEDS
    seeds: tuple[int, ...] = ()
    salt: str = ""
    workload: str | None = None
    tier: str | None = None
    protocol: str | None = None
    device: str | None = None
    directory: Path | None = None
    from_snapshot: bool = False
    command_line: str = ""


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """What came of it; ``decision`` is ``None`` where the bundle was rejected and nothing ran."""

    verified: Verdict
    decision: Decision | None
    quantities: tuple[Quantity, ...] = ()
    facts: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Return everything as JSON."""
        quantities = [asdict(one) for one in self.quantities]
        facts = {"verified": self.verified.verdict, "reasons": list(self.verified.reasons), **self.facts}
        found: dict[str, Any] = jsonable({"decision": self.decision, "quantities": quantities, **facts})
        return found


def reproduce(
    path: Path, results: Path, wanted: Wanted, tell: Callable[[str], None], registry: Registry | None = None
) -> Reproduction:
    """Verify the bundle in ``path``, run some of its trials again into ``results``, and compare.

    A bundle that is rejected is not run. ``tell`` hears what happens. What was found is written to
    ``results/reproductions/<start of the bundle's hash>.json``, and where the records were reproduced the rows of the
    new trials say so.

    Raises:
        BadBundle: the file is no bundle, what was asked for is not in it, or its algorithm is not installed as measured
            and ``wanted.from_snapshot`` does not allow its source to run.
    """
    registry = registry or Registry()
    bundle = read(path)
    verified = verify_bundle(bundle, registry)
    if verified.verdict == "reject":
        return Reproduction(verified=verified, decision=None, facts={"bundle_sha256": bundle.sha256})
    choice = _choose(bundle, registry, wanted)
    foreign = _foreign(bundle, choice, registry, allowed=wanted.from_snapshot)
    trials = {run.folder: _here(run, wanted) for run in choice.runs}
    ids = [trials[run.folder].trial_id for run in choice.runs]
    with tempfile.TemporaryDirectory(prefix="bench-bundle-") as private:
        site, points = None, []
        if foreign:
            site = Path(private) / "site"
            points = write_site(bundle, foreign, _taken(choice, registry, foreign), site)
        store = _store(results, bundle, choice, trials)
        tell(f"running {len(ids)} trials of {choice.case.name}, seeds {', '.join(map(str, choice.seeds))}")
        offline = run_isolated(store.root, ids, environment(Path(private), site, points), tell)
    rows = {folder: store.finished(trial) for folder, trial in trials.items()}
    quantities = tuple(_compare(choice, rows))
    decision = overall(quantities)
    facts = _facts(bundle, choice, rows, trials)
    facts |= {"network": not offline, "source": "bundle" if foreign else "installed", "salt": wanted.salt}
    found = Reproduction(verified=verified, decision=decision, quantities=quantities, facts=facts)
    _write(store, bundle, found, trials)
    return found


def _choose(bundle: Bundle, registry: Registry, wanted: Wanted) -> Choice:
    asked = {"workload": wanted.workload, "tier": wanted.tier, "protocol": wanted.protocol}
    some = []
    for case in cases(bundle, registry):
        trial = case.runs[0].trial
        facts = {"workload": trial.workload, "tier": trial.tier, "protocol": trial.protocol.name}
        if all(value is None or facts[name] == value for name, value in asked.items()):
            some.append(case)
    return choose(bundle, some, number=wanted.number, seeds=wanted.seeds, salt=wanted.salt)


def _here(run: Run, wanted: Wanted) -> Trial:
    """Return the trial as this machine runs it: same setting, seed and data, another device class."""
    trial = run.trial
    device = parse_device(wanted.device or trial.device.partition(":")[0])
    found = detect(device)
    if trial.data.source == "local" and wanted.directory is None:
        raise BadBundle("the bundle was measured on data of the submitter's own", hint="name them here: --data-dir DIR")
    if trial.data.models or (trial.data.tokenizer is not None and "/" in trial.data.tokenizer):
        raise BadBundle("the bundle was measured on weights or a tokenizer of the submitter's own, which are not in it")
    directory = None if trial.data.source != "local" else str(Path(str(wanted.directory)).absolute())
    change = {
        "device": device,
        "device_class": found.name,
        "threads": found.cores if device == "cpu" else None,
        "data": trial.data.model_copy(update={"directory": directory}),
        "command_line": wanted.command_line,
    }
    return trial.model_copy(update=change)


def _store(results: Path, bundle: Bundle, choice: Choice, trials: Mapping[str, Trial]) -> Store:
    """Return the results folder with the trials that are to run.

    One that holds the very records of the bundle is refused: they would agree with themselves.
    """
    store = Store(results, create=True)
    for run in choice.runs:
        row = store.finished(trials[run.folder])
        if row is not None and (row["started_at"], row["time_s"]) == (run.row["started_at"], run.row["time_s"]):
            raise BadBundle(
                f"{str(store.root)!r} holds the very trials of the bundle, which reproduce nothing",
                hint="run into a folder of its own: --results DIR",
            )
    for protocol in bundle.protocols:
        store.keep(protocol)
    for trial in trials.values():
        store.folder(trial)
    return store


def _foreign(bundle: Bundle, choice: Choice, registry: Registry, *, allowed: bool) -> list[str]:
    """Return the algorithms whose source must come from the bundle: what is installed is none, or another one."""
    parts = {part.name: part for run in choice.runs for part in (run.trial.algorithm, *run.trial.fillers)}
    lacking = []
    for name, part in sorted(parts.items()):
        installed = facts_of(registry, name) if name in registry.algorithms else None
        if installed is None or installed.sha256 != part.source_sha256:
            lacking.append(name)
            continue
        said = bundle.manifest.algorithms[name]
        if (installed.search, installed.defaults) != (said.search, said.defaults):
            raise BadBundle(f"the manifest declares other ranges or defaults of {name!r} than its class")
    if lacking and not allowed:
        name = lacking[0]
        package = bundle.manifest.algorithms[name].package
        raise BadBundle(
            f"{name!r} is not installed with the source that was measured, {parts[name].source_sha256[:12]}",
            hint=f"install {package!r} {parts[name].version!r}; or read the source in the bundle, and if you trust it "
            "run it: --from-snapshot",
        )
    return lacking


def _taken(choice: Choice, registry: Registry, foreign: Sequence[str]) -> list[str]:
    """Return the modules that must stay as installed."""
    trials = [run.trial for run in choice.runs]
    entries = [registry.workloads[trial.workload] for trial in trials if trial.workload in registry.workloads]
    names = {part.name for trial in trials for part in (trial.algorithm, *trial.fillers)} - set(foreign)
    targets = [entry.target for entry in entries] + [registry.algorithms[name].target for name in sorted(names)]
    return [target.partition(":")[0] for target in targets]


def _compare(choice: Choice, rows: dict[str, Any]) -> list[Quantity]:
    """Compare what both sides measured, seed by seed; a seed of which one side has no measurement is left out."""
    both = [pair for pair in choice.pairs if all(rows[run.folder] is not None for run in pair if run is not None)]
    if not both:
        return []
    name, case = choice.group.algorithm, choice.case
    theirs, ours = [run.row for run, _ in both], [rows[run.folder] for run, _ in both]
    has_target = all(row["target"] is not None for row in theirs)
    hits = any(row["outcome"] == "reached" for row in (*theirs, *ours))
    found = []
    if not (has_target and hits):
        every = [run.row for run in choice.group.counted if run.row["outcome"] in MEASURED]
        found.append(quality(f"quality of {name}", every, ours))
    else:
        found.append(steps(f"steps of {name}", theirs, ours))
    sides = [(run, other) for run, other in both if other is not None]
    if not sides or choice.reference is None:
        return found
    reference = choice.reference.algorithm
    row_pairs = [[(run.row, other.row) for run, other in sides], [(rows[r.folder], rows[o.folder]) for r, o in sides]]
    if has_target and hits:
        found.append(steps(f"steps of {reference}", *([row for _, row in side] for side in row_pairs)))
        found.append(steps_ratio(f"steps of {name} / {reference}", *row_pairs))
    elif case.references:
        every = [run.row for run in choice.reference.counted if run.row["outcome"] in MEASURED]
        found.append(quality(f"quality of {reference}", every, [row for _, row in row_pairs[1]]))
    found.append(time_ratio(f"time of {name} / {reference}", *row_pairs))
    return found


_VERSIONS = ("bench_version", "torch_version", "python_version", "platform", "cpu_model", "gpu_name")


def _facts(bundle: Bundle, choice: Choice, rows: dict[str, Any], trials: dict[str, Trial]) -> dict[str, Any]:
    theirs, ours = choice.runs[0].row, next((row for row in rows.values() if row is not None), None)
    return {
        "bundle_sha256": bundle.sha256,
        "plugin": bundle.manifest.plugin,
        "comparison": choice.case.name,
        "setting": choice.group.name,
        "seeds": choice.seeds,
        "theirs": {"device_class": choice.runs[0].trial.device_class, **{name: theirs[name] for name in _VERSIONS}},
        "ours": {
            "device_class": next(iter(trials.values())).device_class,
            **{name: None if ours is None else ours[name] for name in _VERSIONS},
        },
        "trials": [
            {
                "theirs": run.folder,
                "ours": trials[run.folder].trial_id,
                "algorithm": run.trial.algorithm.name,
                "seed": run.trial.seed,
                "outcome_theirs": run.row["outcome"],
                "outcome_ours": None if rows[run.folder] is None else rows[run.folder]["outcome"],
            }
            for run in choice.runs
        ],
        "at": provenance.now(),
    }


def _write(store: Store, bundle: Bundle, found: Reproduction, trials: dict[str, Trial]) -> None:
    """Write what was found, and let the rows of the new trials say whether they reproduced the bundle."""
    folder = store.root / FOLDER
    with writing(folder):
        folder.mkdir(exist_ok=True)
    record = {"bench": "reproduction", "format": 1, **found.record()}
    write_text(folder / f"{bundle.sha256[:12]}.json", json.dumps(record, indent=1) + "\n")
    reproduces = bundle.sha256 if found.decision == "reproduced" else None
    for trial in trials.values():
        if store.finished(trial) is not None:
            store.folder(trial.model_copy(update={"reproduces": reproduces}))
            store.finalise(trial)
