"""Two ways to do the same, measured side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import pytest


@dataclass(frozen=True)
class Ratio:
    """How much longer one takes than the other: the ratios of the pairs, in seconds over seconds."""

    pairs: list[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        return [one / other for one, other in self.pairs]

    @property
    def median(self) -> float:
        return statistics.median(self.ratios)

    def facts(self) -> dict[str, float]:
        """Return what a benchmark's ``extra_info`` keeps."""
        low, middle, high = statistics.quantiles(self.ratios, n=4)
        return {
            "ratio_median": middle,
            "ratio_lower_quartile": low,
            "ratio_upper_quartile": high,
            "pairs": len(self.pairs),
            "seconds_median": statistics.median(one for one, _ in self.pairs),
            "seconds_median_of_the_other": statistics.median(other for _, other in self.pairs),
        }

    def __str__(self) -> str:
        facts = self.facts()
        return (
            f"median ratio {facts['ratio_median']:.4f}, quartiles {facts['ratio_lower_quartile']:.4f} to "
            f"{facts['ratio_upper_quartile']:.4f} of {len(self.pairs)} pairs; "
            f"{facts['seconds_median']:.4f} s against {facts['seconds_median_of_the_other']:.4f} s"
        )


@pytest.fixture
def side_by_side(benchmark, capsys) -> Callable[..., Ratio]:
    """Measure two things in turn (A B, B A, A B, ...), keep and print their ratio."""

    def measure(one: Callable[[], float], other: Callable[[], float], pairs: int, what: str) -> Ratio:
        """Each callable does its work once and returns the seconds that it took."""

        def interleaved() -> Ratio:
            found = []
            for number in range(pairs):
                if number % 2 == 0:
                    first = one()
                    found.append((first, other()))
                else:
                    second = other()
                    found.append((one(), second))
            return Ratio(found)

        one(), other()  # caches of the file system, kernels
        ratio: Ratio = benchmark.pedantic(interleaved, rounds=1, iterations=1)
        benchmark.extra_info.update(ratio.facts())
        with capsys.disabled():
            print(f"\n{what}: {ratio}")  # noqa: T201 - the measurement is what this is for
        return ratio

    return measure
