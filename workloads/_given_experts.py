"""Models of the user's own to merge, in place of those that the workload trains.

They are state dicts of the architecture in ``_merge_experts``, with its names and shapes, told apart by the names of
their files, as ``.pt``, ``.pth`` or ``.safetensors``:

    pretrained.pt    the common start; whose head it has does not matter
    task-K.pt        the expert of task K with its head, for one task or more

A folder stands for all its files. The tasks are those of the trial's seed, so models are judged on what they were
trained for only if that seed is named; a model that knows its task no better than a guess is refused. All of them are
merged at one point, in the order in which they were named.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Final

from bench.errors import BadData

from ._merge_experts import Expert, Training, accuracy, empty_expert
from ._state_files import fill, read_state, states_sha256
from ._subspace_tasks import Generator, Task, draw_tasks

if TYPE_CHECKING:
    from pathlib import Path

_ACCURACY_OF_A_STRANGER: Final = 0.2
"""Ten classes are guessed with 0.1; what knows its task no better than this was trained on another one."""


class GivenExperts:
    """The models in a user's files, which are read anew at each access, on the CPU; see the module."""

    def __init__(self, files: Sequence[Path], generator: Generator, training: Training, seed: int) -> None:
        self.generator, self.training, self.seed = generator, training, seed
        self.start, self.experts = sort_files(files, generator.tasks)

    @cached_property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the seed, drawn at the first use."""
        return draw_tasks(self.generator, self.seed)

    def pretrained(self, head: int) -> Expert:
        """Return the common start with the head of task ``head``."""
        start = self._read(self.start)
        start.head = self._read(self.experts[head]).head
        return start

    def expert(self, number: int) -> Expert:
        """Return the expert of task ``number``."""
        return self._read(self.experts[number])

    def joint(self, head: int) -> None:
        """Return none: nobody trained one."""

    def prepare(self, numbers: Sequence[int]) -> None:
        """Refuse models that do not know their tasks."""
        for number in numbers:
            expert = self.expert(number)
            share = accuracy(expert.backbone, expert.head, self.tasks[number].validation)
            if share <= _ACCURACY_OF_A_STRANGER:
                raise BadData(
                    f"{self.experts[number]} is right on {share:.0%} of the examples of task {number} of seed "
                    f"{self.seed}: little more than guessing",
                    hint="--seed names the seed of the tasks, and the file's name the number of the task",
                )

    def sha256(self, numbers: Sequence[int]) -> tuple[str, ...]:
        """Return the hash of all the tensors together."""
        return (states_sha256([self.start, *(self.experts[number] for number in numbers)]),)

    def _read(self, file: Path) -> Expert:
        model = empty_expert(self.generator, self.training)
        fill(model, read_state(file), file)
        return model


def sort_files(files: Sequence[Path], tasks: int) -> tuple[Path, dict[int, Path]]:
    """Return the file of the common start and those of the experts by task, told by the names of the files."""
    starts = [file for file in files if file.stem == "pretrained"]
    experts: dict[int, Path] = {}
    for file in files:
        if file.stem == "pretrained":
            continue
        found = re.fullmatch(r"task-(\d+)", file.stem)
        if found is None or int(found[1]) >= tasks:
            raise BadData(
                f"--model-dir: nothing is known of a model named {file.stem!r} ({file})",
                hint=f"the names are pretrained and task-0 to task-{tasks - 1}",
            )
        if int(found[1]) in experts:
            raise BadData(f"--model-dir: task {found[1]} was given twice, {experts[int(found[1])]} and {file}")
        experts[int(found[1])] = file
    if len(starts) != 1 or not experts:
        raise BadData(
            f"--model-dir: {len(starts)} common starts and {len(experts)} experts were given",
            hint="name one pretrained.pt (or .safetensors) and one task-K.pt or more, or a folder that has them",
        )
    return starts[0], experts
