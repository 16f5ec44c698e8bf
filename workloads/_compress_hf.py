"""compress-llama's real tier: a LLaMA checkpoint in Hugging Face's layout, and text in its tokens.

The folder holds ``config.json``, the weights as safetensors, and the files of the tokenizer. ``transformers`` builds
model and tokenizer; nothing is fetched, and code inside a checkpoint is never run.

Text is packed: the documents of a split, each followed by the end-of-sequence token, make one stream, which is cut into
windows of the model's context (2,048 tokens at most), none of them padded. Perplexity is taken on the first windows of
the validation split. Calibration set s is the s-th piece of the training stream.

Deviations: SparseGPT's and Wanda's scripts draw one random window from each of 128 long documents; SVD-LLM's draws
windows from the joined text; both put a beginning-of-sequence token only where their tokenizer adds one.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from bench import DataIdentity
from bench.errors import BadData

from ._tokenizers import INSTALL_HF

if TYPE_CHECKING:
    from ._corpus import Split
    from ._documents import Source

LONGEST: Final = 2_048
_LAYOUT: Final = (
    "--model-dir names a folder with config.json, *.safetensors and the tokenizer's files, for example from "
    "hf download NAME --local-dir DIR"
)
_CHUNK: Final = 64
_WEIGHTS: Final = "*.safetensors"


class CausalLM(nn.Module):
    """A causal language model of ``transformers`` that is called as every language model here: tokens in, logits out.

    ``lm`` is the model itself, so that every linear of it can be replaced in place.
    """

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.lm = lm

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, T, V) of the token after each position of ``tokens`` (B, T)."""
        logits: Tensor = self.lm(input_ids=tokens, use_cache=False).logits
        return logits


@dataclass(frozen=True)
class Checkpoint:
    """A folder with a LLaMA checkpoint in Hugging Face's layout.

    A head that is tied to the embedding becomes a matrix of its own, because each of the two has a role; numbers about
    the whole model then count both.

    Raises:
        BadData: ``transformers`` is not installed; the folder or one of its files is missing, damaged or of another
            architecture.
    """

    directory: Path
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        """Refuse a folder without a configuration and safe weights."""
        for name in ("config.json", _WEIGHTS):
            if not any(self.directory.glob(name)):
                raise BadData(f"model folder {str(self.directory)!r} has no {name}", hint=_LAYOUT)

    @cached_property
    def _transformers(self) -> Any:
        try:
            transformers = importlib.import_module("transformers")
        except ImportError as error:
            raise BadData("a Hugging Face checkpoint needs the package 'transformers'", hint=INSTALL_HF) from error
        transformers.utils.logging.disable_progress_bar()  # it would write into the lines of a log
        return transformers

    @cached_property
    def config(self) -> Any:
        """The checkpoint's configuration."""
        config = self._load("AutoConfig")
        if config.model_type != "llama" or getattr(config, "attention_bias", False) or config.mlp_bias:
            raise BadData(
                f"model folder {self.directory.name!r} holds a model of type {config.model_type!r}, with biases or not "
                "LLaMA",
                hint="this workload compresses LLaMA decoders whose linears have no biases",
            )
        return config

    @property
    def length(self) -> int:
        """Tokens per window: the model's context, 2,048 at most."""
        return min(LONGEST, int(self.config.max_position_embeddings))

    @cached_property
    def sha256(self) -> str:
        """SHA-256 over names, sizes and bytes of configuration and weights."""
        return _files_sha256([self.directory / "config.json", *self.directory.glob(_WEIGHTS)])

    @cached_property
    def tokenizer_sha256(self) -> str:
        """SHA-256 over the tokenizer's files."""
        names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
        return _files_sha256([path for name in names if (path := self.directory / name).is_file()])

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer."""
        tokenizer = self._load("AutoTokenizer")
        if tokenizer.eos_token_id is None:
            raise BadData(
                f"the tokenizer in {self.directory.name!r} has no end-of-sequence token",
                hint="add eos_token to its tokenizer_config.json: it stands between documents",
            )
        return tokenizer

    def model(self, device: torch.device) -> nn.Module:
        """Return the model with its weights, of dtype ``dtype``; on ``meta`` its shapes only."""
        config, kind = self.config, self._transformers.AutoModelForCausalLM
        if device.type == "meta":
            with torch.device("meta"):
                lm = kind.from_config(config, dtype=self.dtype)
        else:
            lm = self._load("AutoModelForCausalLM", dtype=self.dtype, use_safetensors=True).to(device)
        if config.tie_word_embeddings:
            lm.lm_head.weight = nn.Parameter(lm.lm_head.weight.detach().clone())
            lm.config.tie_word_embeddings = False
        return CausalLM(lm).eval()

    def windows(self, documents: Iterable[str]) -> Iterator[Tensor]:
        """Yield the windows (T,) of packed documents; what is left at the end is dropped."""
        tokenizer, stream = self.tokenizer, iter(documents)
        left: list[int] = []
        while texts := list(islice(stream, _CHUNK)):
            for tokens in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
                left += [*tokens, tokenizer.eos_token_id]
            whole = len(left) - len(left) % self.length
            yield from torch.tensor(left[:whole], dtype=torch.long).view(-1, self.length)
            del left[:whole]

    def _load(self, kind: str, **options: Any) -> Any:
        loader = getattr(self._transformers, kind)
        try:
            return loader.from_pretrained(self.directory, local_files_only=True, **options)
        except Exception as error:  # the library raises many unrelated kinds for files that it cannot use
            raise BadData(
                f"transformers cannot load {kind} from {str(self.directory)!r}: {type(error).__name__}: {error}",
                hint=_LAYOUT,
            ) from error


@dataclass(frozen=True, kw_only=True)
class CheckpointBase:
    """A checkpoint, and text in its tokens.

    Args:
        checkpoint: the folder.
        source: where documents come from.
        calibration_windows: sequences of one calibration set.
        evaluation_windows: sequences of the validation split; a smaller split is taken whole.
    """

    checkpoint: Checkpoint
    source: Source
    calibration_windows: int = 128
    evaluation_windows: int = 512
    shifted: None = None

    @property
    def identity(self) -> DataIdentity:
        """What decides text, tokenizer, cut, calibration and evaluation."""
        source, length = self.source, self.checkpoint.length
        facts = (source.name, source.content, self.checkpoint.tokenizer_sha256, length)
        sizes = (self.calibration_windows, self.evaluation_windows)
        return DataIdentity(
            source=source.name,
            sha256=sha256(repr((*facts, *sizes)).encode()).hexdigest(),
            label=f"{source.label}, content {source.content[:12]}, packed windows of {length} tokens of "
            f"{self.checkpoint.directory.resolve().name!r}",
        )

    def model(self, seed: int, device: torch.device) -> nn.Module:
        """Return the checkpoint's model, whatever the seed."""
        del seed
        return self.checkpoint.model(device)

    def sha256(self, seed: int) -> str:
        """Return the hash of the checkpoint's files."""
        del seed
        return self.checkpoint.sha256

    def calibration(self, seed: int) -> Tensor:
        """Return the windows (N, T) of ``seed``."""
        first = seed * self.calibration_windows
        return self._take("train", first, first + self.calibration_windows, self.calibration_windows)

    @cached_property
    def validation(self) -> Tensor:
        """The first windows (N, T) of the validation split."""
        return self._take("validation", 0, self.evaluation_windows, 1)

    def _take(self, split: Split, first: int, last: int, least: int) -> Tensor:
        found = list(islice(self.checkpoint.windows(self.source.documents(split)), first, last))
        if len(found) < least:
            raise BadData(
                f"the {split} split of {self.source.label} has fewer than the {first + least} windows of "
                f"{self.checkpoint.length} tokens that are needed",
                hint="name more text by --data-dir, or a lower seed: calibration set s is the s-th piece of the text",
            )
        return torch.stack(found)


def _files_sha256(paths: list[Path]) -> str:
    digest = sha256()
    for path in sorted(paths, key=lambda path: path.name):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
