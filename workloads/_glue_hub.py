"""GLUE from the Hugging Face hub, through ``datasets``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from bench.errors import BadData

from ._glue_data import HUB, Rows, Task, checked
from ._tokenizers import INSTALL_HF

COMMIT: Final = "bcdcba79d07bc864c1c254ccfcedcce55bcc9a8c"


@dataclass(frozen=True)
class GlueHub:
    """``nyu-mll/glue`` at a fixed commit. Reading a task downloads it into the cache of ``datasets`` once.

    Raises:
        BadData: on reading, if ``datasets`` is not installed, the hub is out of reach while the cache lacks this
            commit, or what came does not have the published number of rows.
    """

    name = "glue"

    @property
    def label(self) -> str:
        """Repository and commit."""
        return f"{HUB} at {COMMIT[:12]}"

    def rows(self, task: Task, split: str) -> Rows:
        """Return a split in the order of the hub."""
        try:
            columns = _columns(task, split)
        except BadData:
            raise
        except Exception as error:  # errors of connection, HTTP, Arrow and files, from five libraries
            raise _unreachable(task, error) from error
        rows = checked(task, columns, f"the {split} split of {HUB!r} ({task.name})")
        if len(rows) != task.sizes[split]:
            raise BadData(
                f"the {split} split of {HUB!r} ({task.name}) has {len(rows):,} rows, not {task.sizes[split]:,}",
                hint="its copy in the cache of 'datasets' is damaged: remove it there",
            )
        return rows


def _columns(task: Task, split: str) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise BadData(
            f"GLUE from the hub needs the package 'datasets', which cannot be imported: {error}",
            hint=f"{INSTALL_HF}; or {task.files}",
        ) from error
    builder = datasets.load_dataset_builder(HUB, task.name, revision=COMMIT)
    if builder.hash != COMMIT:
        # Without network, datasets takes whatever revision its cache has, and only warns.
        raise BadData(
            f"the cache of 'datasets' has {HUB!r} at {builder.hash}, not at {COMMIT}",
            hint="go online, or remove that data set from the cache",
        )
    builder.download_and_prepare()
    return dict(builder.as_dataset(split=split).to_dict())


def _unreachable(task: Task, error: Exception) -> BadData:
    reason = (str(error) or repr(error)).splitlines()[0]
    return BadData(
        f"cannot get {HUB!r} (config {task.name!r}, revision {COMMIT[:12]}) from the Hugging Face hub: "
        f"{type(error).__name__}: {reason}",
        hint=f"without network name local files: {task.files}; and --model-dir DIR with RoBERTa-base itself; or "
        "HF_HUB_OFFLINE=1, where the caches of 'datasets' and 'huggingface_hub' have both",
    )
