"""The CSV file of the AlgoPerf competition."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from random import Random

from bench.imports.algoperf import NAMES, NUMBERS, import_csv
from fuzzing import hostile, mutate
from fuzzing.case import Case

HEADING = [*NAMES, *NUMBERS]


def lines(count: int) -> list[list[str]]:
    """Return sound lines."""
    found = []
    for number in range(count):
        study, trial = number % 5, number // 5 + 1
        hit = number % 3 != 0
        target = ["501.756", "676", "4"] if hit else ["", "", ""]
        numbers = [str(study), str(trial), *target, "6", "0.1239", "701.5", "1000"]
        found.append(["external_tuning", "baseline", "jax", "criteo1tb", *numbers])
    return found


class Algoperf:
    """Imports one file into a folder of results."""

    def __init__(self, home: Path) -> None:  # noqa: ARG002 - a target's signature
        self._good = [HEADING, *lines(10)]

    def make(self, random: Random) -> Case:
        table = [list(line) for line in self._good]
        for _ in range(random.choice((0, 1, 1, 2))):
            line = random.randrange(len(table))
            column = random.randrange(len(table[line]))
            kind = random.random()
            if kind < 0.7:
                table[line][column] = hostile.text(random)
            elif kind < 0.8:
                del table[line][column]
            elif kind < 0.9:
                table[line].insert(column, random.choice(table[line]))
            else:
                table.insert(line, list(random.choice(table)))
        file = io.StringIO()
        csv.writer(file, lineterminator=random.choice(("\n", "\n", "\r\n", "\r"))).writerows(table)
        raw = file.getvalue().encode("utf-8", errors="surrogatepass")
        if random.random() < 0.3:
            raw = mutate.data(random, raw)
        if random.random() < 0.02:
            raw = file.getvalue().encode("utf-16", errors="replace")
        return {"file": raw}

    def run(self, case: Case, folder: Path) -> None:
        (folder / "x.csv").write_bytes(case["file"])
        import_csv(folder / "x.csv", folder / "results")
