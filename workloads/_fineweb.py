"""FineWeb's 10-billion-token sample in GPT-2's tokens, from the Hugging Face hub."""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.errors import BadData

from ._token_shards import FILE_SPLIT, read_shard
from ._tokenizers import INSTALL_HF

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._corpus import Split
    from ._tokenizers import Tokens

COMMIT: Final = "889765ea1f903759787add96995d81171b632d0c"
TRAIN_SHARDS: Final = 103


@dataclass(frozen=True)
class FineWeb:
    """The shards of ``kjj0/fineweb10B-gpt2``, 100 million tokens each, fetched one by one as they are needed.

    Args:
        vocabulary: token ids must be below it.
        repository: the data set on the hub.
        revision: a commit. The default is the one that other work pins.

    What is in the local cache of ``huggingface_hub`` is taken from there without any network. The validation split is
    the shard number 0; the training split is shards 1 to 103 in this order. The content of the hub is not hashed:
    ``content`` is the SHA-256 of repository and commit.

    Raises:
        BadData: on reading, if ``huggingface_hub`` is not installed, the hub is out of reach, or a shard is damaged.
    """

    vocabulary: int
    repository: str = "kjj0/fineweb10B-gpt2"
    revision: str = COMMIT
    _opened: dict[str, Tokens] = field(default_factory=dict, init=False, repr=False, compare=False)
    name = "fineweb"

    @property
    def content(self) -> str:
        """SHA-256 of repository and commit."""
        return sha256(f"{self.repository} {self.revision}".encode()).hexdigest()

    @property
    def label(self) -> str:
        """Repository and commit."""
        return f"{self.repository} at {self.revision}"

    def names(self, split: Split) -> list[str]:
        """Return the names of the files of a split, in order."""
        numbers = range(1, TRAIN_SHARDS + 1) if split == "train" else range(1)
        return [f"fineweb_{FILE_SPLIT[split]}_{number:06d}.bin" for number in numbers]

    def prepare(self, split: Split, tokens: int) -> None:
        """Fetch and check as many shards as hold the first ``tokens`` tokens of a split, so that no step waits."""
        for shard in self.shards(split):
            tokens -= len(shard)
            if tokens <= 0:
                return

    def shards(self, split: Split) -> Iterator[Tokens]:
        """Yield the tokens of one shard after the other, fetching what is not there yet."""
        for name in self.names(split):
            if name not in self._opened:
                self._opened[name] = read_shard(self._fetched(name), self.vocabulary)
            yield self._opened[name]

    def _fetched(self, name: str) -> Path:
        try:
            import huggingface_hub
        except ImportError as error:
            raise BadData("FineWeb needs the package 'huggingface_hub'", hint=INSTALL_HF) from error
        try:
            found = huggingface_hub.hf_hub_download(self.repository, name, repo_type="dataset", revision=self.revision)
        except Exception as error:  # the client raises many unrelated kinds, and all say that the file could not be had
            raise BadData(
                f"cannot get {name} of {self.repository!r} (revision {self.revision!r}): "
                f"{type(error).__name__}: {error}",
                hint="without network use --data embedded; or --data-dir DIR with shards that were fetched elsewhere; "
                f"or fill the hub's cache once by hf download {self.repository} {name} --repo-type dataset "
                f"--revision {self.revision}, and so on with every shard that is needed",
            ) from error
        return Path(found)
