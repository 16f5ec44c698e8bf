"""The suite in a notebook: run trials, load what was recorded as data frames, rank, and draw.

    >>> import bench
    >>> results = bench.run("galore", "llama-c4", results="results")    # doctest: +SKIP
    >>> results = bench.load("results")                                 # doctest: +SKIP
    >>> results.boards("steps")[0].rows[["algorithm", "steps_to_target", "steps_ratio"]]    # doctest: +SKIP
    >>> axes = results.draw("curves")                                   # doctest: +SKIP

The command line does the same with the same objects; nothing is computed here.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from bench import figures
from bench.board import Board, Measure, boards
from bench.campaign import Listener, Silence, run_plan
from bench.errors import BadValue, UnknownName
from bench.plan import make_plan
from bench.protocol import Protocol
from bench.registry import Registry
from bench.request import Request
from bench.standings import Standings, standings
from bench.store import Store
from bench.tables import read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PathLike = str | Path

Drawing = Literal["curves", "hits", "pareto", "ratios"]
DRAWINGS: tuple[Drawing, ...] = ("curves", "hits", "pareto", "ratios")


@dataclass(frozen=True, kw_only=True)
class Results:
    """What one or more results folders hold: ``trials`` and ``curves`` as data frames, protocols by their hash."""

    trials: pd.DataFrame
    curves: pd.DataFrame
    protocols: Mapping[str, Protocol]

    def boards(self, by: Measure = "time") -> list[Board]:
        """Return one leaderboard for each set of trials that compare, ordered ``by`` a measure."""
        return boards(self.trials, by, self.protocols)

    def standings(self, by: Measure = "time") -> list[Standings]:
        """Return the scores over several workloads, one table per protocol and device class."""
        return standings(self.trials, by, self.protocols)

    def draw(self, what: Drawing = "curves", board: Board | None = None, axes: Axes | None = None) -> Axes:
        """Draw ``what`` of one ``board`` into ``axes`` and return them; by default the only board, on new axes.

        Raises :class:`~bench.errors.BadValue` where there is more than one board and none is named.
        """
        if what not in DRAWINGS:
            raise UnknownName("drawing", what, DRAWINGS)
        board = board if board is not None else self._only_board()
        if axes is None:
            number = len(board.rows)
            room = {"rows": number} if what == "ratios" else {"legend": (number + 1) // 2}
            _, axes = figures.new_figure(**room)
        if what == "curves":
            figures.draw_curves(axes, board, self.trials, self.curves)
        elif what == "hits":
            figures.draw_hits(axes, board, self.trials)
        elif what == "pareto":
            figures.draw_pareto(axes, board)
        else:
            figures.draw_ratios(axes, board)
        return axes

    def _only_board(self) -> Board:
        found = self.boards("steps")
        if len(found) != 1:
            raise BadValue(f"there are {len(found)} boards", hint="name one: draw(..., board=results.boards()[0])")
        return found[0]


def load(*results: PathLike) -> Results:
    """Return what the folders ``results`` hold (by default ``results``); a trial in two of them counts once."""
    tables = read(results or ("results",))
    return Results(trials=tables.trials, curves=tables.curves, protocols=tables.protocols)


def run(
    plugins: str | Sequence[str],
    workload: str,
    *,
    tier: str | None = None,
    settings: Mapping[str, Any] | None = None,
    with_plugins: Sequence[str] = (),
    protocol: str = "quick",
    seeds: int | Sequence[int] | None = None,
    device: str = "cpu",
    data: str | None = None,
    data_dir: PathLike | None = None,
    tokenizer: str | None = None,
    model_dirs: Sequence[PathLike] = (),
    results: PathLike = "results",
    reference: bool = True,
    listener: Listener | None = None,
) -> Results:
    """Run what ``bench run`` with the same options would run, and return everything that ``results`` then holds.

    ``settings`` maps ``"name"`` or ``"plugin.name"`` to a value; ``seeds`` is how many, or which. Trials that are
    recorded already are not run again. ``listener`` hears of each trial; by default nobody does. Each trial is a
    process of its own, so a notebook stays responsive to an interrupt and keeps its memory. User errors are
    :class:`~bench.errors.BenchError`.
    """
    names = [plugins] if isinstance(plugins, str) else list(plugins)
    if data is not None and data_dir is not None:
        raise BadValue("data and data_dir exclude each other", hint="a folder of shards is always source 'local'")
    request = Request(
        plugins=names,
        workload=workload,
        tier=tier,
        settings=[f"{name}={'none' if value is None else value}" for name, value in (settings or {}).items()],
        with_plugins=with_plugins,
        protocol=protocol,
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        device=device,
        source=data,
        directory=None if data_dir is None else Path(data_dir),
        tokenizer=tokenizer,
        models=[Path(folder) for folder in model_dirs],
        reference=reference,
    )
    request = replace(request, command_line=_command_line(request, results))
    plan = make_plan(Registry(), request)
    store = Store(Path(results), create=True)
    run_plan(plan, store, listener or Silence())
    return load(results)


def _command_line(request: Request, results: PathLike) -> str:
    """Return the ``bench run`` that does the same."""
    seeds = list(request.seeds) if request.seeds is not None else []
    several = ["--seeds", str(len(seeds))] if seeds == list(range(len(seeds))) else ["--seed", *map(str, seeds)]
    options = {
        "--plugin": ",".join(request.plugins),
        "--workload": request.workload,
        "--tier": request.tier,
        "--protocol": request.protocol,
        "--device": request.device,
        "--data": request.source,
        "--data-dir": request.directory,
        "--tokenizer": request.tokenizer,
        "--results": results,
    }
    words = [word for name, value in options.items() if value is not None for word in (name, str(value))]
    words += [word for text in request.settings for word in ("--set", text)]
    words += [word for folder in request.models for word in ("--model-dir", str(folder))]
    words += [word for name in request.with_plugins for word in ("--with", name)]
    words += [*(several if seeds else []), *([] if request.reference else ["--no-reference"])]
    return shlex.join(["bench", "run", *words])
