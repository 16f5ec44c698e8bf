"""C4 itself, streamed from the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bench.errors import BadData

from ._documents import LocalShards
from ._tokenizers import INSTALL_HF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._corpus import Split

SHUFFLE_SEED: Final = 42
SHUFFLE_BUFFER: Final = 10_000
COMMIT: Final = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"


@dataclass(frozen=True)
class C4:
    """``allenai/c4``, config ``en``, through Hugging Face ``datasets``: streamed, and shuffled by its buffer of 10,000.

    Args:
        repository: the data set on the hub, or a local folder laid out like it.
        config: the configuration, ``en`` in the protocol.
        revision: a commit (40 hexadecimal digits; nothing is looked up), or a branch or tag, which is resolved to its
            commit. The default is the commit that ``main`` has named for years, so that results stay comparable.

    The training split is shuffled with seed 42 + ``seed`` (the published protocol is ``seed`` 0), the validation split
    always with 42. The order also depends on the version of ``datasets``.

    The content of the hub cannot be hashed: ``content`` is the SHA-256 of repository, config and commit. A local folder
    is hashed as ``LocalShards`` does, and calls itself ``local``, because nobody knows that it is C4.

    Raises:
        BadData: ``datasets`` is not installed, the hub is out of reach, or only another revision is in the local cache.
    """

    repository: str = "allenai/c4"
    config: str = "en"
    revision: str = COMMIT
    small = False
    shuffled = True

    @property
    def _folder(self) -> Path | None:
        path = Path(self.repository)
        return path if path.is_dir() else None

    @property
    def name(self) -> str:
        """``c4``, or ``local`` where the repository is a folder."""
        return "c4" if self._folder is None else "local"

    @cached_property
    def commit(self) -> str:
        """The commit of the hub's repository that is read."""
        if re.fullmatch(r"[0-9a-f]{40}", self.revision):
            return self.revision
        try:
            import huggingface_hub
        except ImportError as error:
            raise _not_installed() from error
        try:
            return str(huggingface_hub.HfApi().dataset_info(self.repository, revision=self.revision).sha)
        except Exception as error:  # the client raises many unrelated kinds, and all say that the hub did not answer
            raise self._unreachable(error) from error

    @property
    def content(self) -> str:
        """SHA-256 of repository, config and commit; of the shards where the repository is a folder."""
        if self._folder is not None:
            return LocalShards(self._folder).content
        return sha256(f"{self.repository} {self.config} {self.commit}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Repository, config and commit."""
        if self._folder is not None:
            return f"local data set {self._folder.resolve().name!r} ({self.config})"
        return f"{self.repository} ({self.config}) at {self.commit}"

    def documents(self, split: Split, *, seed: int = 0, epoch: int = 0) -> Iterator[str]:
        """Yield each document once, in the order that seed and epoch give the training split."""
        shuffle_seed, epoch = (SHUFFLE_SEED + seed, epoch) if split == "train" else (SHUFFLE_SEED, 0)
        try:
            stream = self._stream(split).shuffle(seed=shuffle_seed, buffer_size=SHUFFLE_BUFFER)
            stream.set_epoch(epoch)
            for row in stream:
                yield row["text"]
        except BadData:
            raise
        except Exception as error:  # errors of connection, HTTP, Arrow and JSON, from four libraries
            raise self._unreachable(error) from error

    def _stream(self, split: Split) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise _not_installed() from error
        if self._folder is not None:
            return datasets.load_dataset(self.repository, self.config, split=split, streaming=True)
        builder = datasets.load_dataset_builder(self.repository, self.config, revision=self.commit)
        if builder.hash != self.commit:
            # Without network, datasets takes whatever revision its cache has, and only warns.
            raise BadData(
                f"the cache of 'datasets' has {self.repository!r} at {builder.hash}, not at {self.commit}",
                hint="go online, or remove that data set from the cache",
            )
        return builder.as_streaming_dataset(split=split)

    def _unreachable(self, error: Exception) -> BadData:
        return BadData(
            f"cannot stream {self.repository!r} (config {self.config!r}, revision {self.revision!r}): "
            f"{type(error).__name__}: {error}",
            hint="without network use --data embedded; or --data-dir DIR with shards that were fetched elsewhere by "
            'hf download allenai/c4 --repo-type dataset --include "en/c4-validation.*" "en/c4-train.0000*" '
            "--local-dir DIR; or HF_HUB_OFFLINE=1, where the cache of 'datasets' has the whole configuration",
        )


def _not_installed() -> BadData:
    return BadData("C4 needs the package 'datasets'", hint=INSTALL_HF)
