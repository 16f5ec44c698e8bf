"""RoBERTa with a head for classification, and its tokenizer, from one folder in Hugging Face's layout.

The folder is the user's, or ``FacebookAI/roberta-base`` at a fixed commit in the cache of ``huggingface_hub``. Weights
are safetensors only; no code of a checkpoint is ever run.

Source: arXiv:1907.11692; architecture and head are those of ``RobertaForSequenceClassification`` in ``transformers``.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import nn

from bench import Role
from bench.context import derive_seed
from bench.errors import BadData

from ._tokenizers import INSTALL_HF

if TYPE_CHECKING:
    from torch import Tensor

    from ._glue_batches import Ids

REPOSITORY: Final = "FacebookAI/roberta-base"
COMMIT: Final = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
LENGTH: Final = 128
"""Tokens of an example at most; of a pair, the longer text loses its last ones first."""

CONFIG: Final = "config.json"
WEIGHTS: Final = "model.safetensors"
TOKENIZER: Final = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")
_ON_HUB: Final = (CONFIG, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", WEIGHTS)
_BASE: Final[Mapping[str, Any]] = {
    "vocab_size": 50_265,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3_072,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "layer_norm_eps": 1e-5,
    "pad_token_id": 1,
}
"""The sizes of RoBERTa-base, so that its memory is counted without its files."""

_CHUNK: Final = 1_000
_LAYOUT: Final = (
    f"--model-dir DIR, where DIR has {CONFIG}, {WEIGHTS} and tokenizer.json (or vocab.json and merges.txt): "
    f"hf download {REPOSITORY} --local-dir DIR"
)

_LAYER: Final = r"roberta\.encoder\.layer\.\d+\."
ROLES: Final[Mapping[str, Role]] = {
    r"roberta\.embeddings\.(word|position|token_type)_embeddings\.weight": Role.EMBEDDING,
    _LAYER + r"attention\.self\.query\.weight": Role.ATTENTION_Q,
    _LAYER + r"attention\.self\.key\.weight": Role.ATTENTION_K,
    _LAYER + r"attention\.self\.value\.weight": Role.ATTENTION_V,
    _LAYER + r"attention\.output\.dense\.weight": Role.ATTENTION_O,
    _LAYER + r"(intermediate|output)\.dense\.weight": Role.MLP,
    r"roberta\..*\.LayerNorm\.weight": Role.NORM,
    r"roberta\..*\.bias": Role.BIAS,
    r"classifier\.(dense|out_proj)\.(weight|bias)": Role.CLASSIFIER,
}
"""The head's biases are ``classifier`` and not ``bias``: whoever trains the head trains all of it."""


class RobertaClassifier(nn.Module):
    """RoBERTa and its head (dropout, dense, tanh, dropout, linear on the first token): token ids in, outputs out.

    Parameters are named as in ``RobertaForSequenceClassification``, so a state goes from one to the other.
    """

    def __init__(self, network: nn.Module, pad: int) -> None:
        super().__init__()
        self.roberta: Any = network.roberta
        self.classifier: Any = network.classifier
        self.pad = pad

    def forward(self, inputs: Tensor) -> Tensor:
        """Return logits or scores (B, K) of ``inputs``, token ids (B, T); nothing attends to pads."""
        seen = (inputs != self.pad)[:, None, None, :]  # of this shape it is used as it is, without a look at its values
        outputs: Tensor = self.classifier(self.roberta(inputs, attention_mask=seen).last_hidden_state)
        return outputs


@dataclass(frozen=True)
class Checkpoint:
    """The trained RoBERTa that every task starts from.

    Args:
        directory: a folder with ``config.json``, ``model.safetensors`` and a tokenizer; ``None`` is RoBERTa-base from
            the hub, whose files are downloaded when they are first needed (500 MB).

    Raises:
        BadData: on use, if ``transformers`` is not installed, the hub is out of reach, or a file is missing, damaged or
            not RoBERTa's.
    """

    directory: Path | None = None

    @property
    def name(self) -> str:
        """What to call it, without its place on this machine."""
        if self.directory is None:
            return f"{REPOSITORY} at {COMMIT[:12]}"
        return f"model folder {self.directory.resolve().name!r}"

    @cached_property
    def folder(self) -> Path:
        """The folder with all files; those of the hub are fetched into its cache first."""
        if self.directory is None:
            return _from_hub()
        if not self.directory.is_dir():
            raise BadData(f"model folder {str(self.directory)!r} does not exist or is not a folder", hint=_LAYOUT)
        has = {path.name for path in self.directory.iterdir()}
        for needed in ({CONFIG}, {WEIGHTS}):
            if not needed <= has:
                raise BadData(f"model folder {str(self.directory)!r} has no {next(iter(needed))}", hint=_LAYOUT)
        if "tokenizer.json" not in has and not {"vocab.json", "merges.txt"} <= has:
            raise BadData(
                f"model folder {str(self.directory)!r} has no tokenizer: neither tokenizer.json nor vocab.json with "
                "merges.txt",
                hint=_LAYOUT,
            )
        return self.directory

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the file of weights."""
        return _sha256(self.folder / WEIGHTS)

    @cached_property
    def content(self) -> str:
        """SHA-256 over the weights, the configuration and the tokenizer's files."""
        others = [path for name in (CONFIG, *TOKENIZER) if (path := self.folder / name).is_file()]
        parts = [f"{WEIGHTS} {self.weights_sha256}", *(f"{path.name} {_sha256(path)}" for path in others)]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @cached_property
    def config(self) -> Any:
        """The configuration as ``transformers`` has it; without any file where it is RoBERTa-base's."""
        kind = library().RobertaConfig
        if self.directory is None:
            return kind(**_BASE)
        try:
            facts = json.loads((self.folder / CONFIG).read_text(encoding="utf-8"))
            found = facts.get("model_type")
            if found != "roberta":
                raise BadData(
                    f"{self.name} holds a model of type {found!r}, and this workload is about RoBERTa", hint=_LAYOUT
                )
            config = kind.from_dict(facts)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise BadData(f"{CONFIG} of {self.name} cannot be read: {error}", hint=_LAYOUT) from error
        room = config.max_position_embeddings - config.pad_token_id - 1  # RoBERTa counts positions from there
        if room < LENGTH:
            raise BadData(f"{self.name} has positions for {room} tokens, and examples have {LENGTH}")
        return config

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, whose ids the model must know."""
        folder, config, kind = str(self.folder), self.config, library().AutoTokenizer
        try:
            tokenizer = kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # errors of files, JSON and tokenizers, from three libraries
            raise BadData(f"the tokenizer of {self.name} cannot be read: {_line(error)}", hint=_LAYOUT) from error
        if tokenizer.pad_token_id != config.pad_token_id or len(tokenizer) > config.vocab_size:
            raise BadData(
                f"the tokenizer of {self.name} does not fit its model: {len(tokenizer):,} tokens and pad "
                f"{tokenizer.pad_token_id}, the model has {config.vocab_size:,} and {config.pad_token_id}",
                hint=_LAYOUT,
            )
        return tokenizer

    def encode(self, texts: Sequence[Sequence[str]]) -> list[Ids]:
        """Return the ids of each text, or of each pair (``texts`` holds one or two lists), cut to 128 tokens."""
        ids: list[Ids] = []
        for first in range(0, len(texts[0]), _CHUNK):
            part = [list(column[first : first + _CHUNK]) for column in texts]
            found = self.tokenizer(*part, truncation=True, max_length=LENGTH, return_attention_mask=False)
            ids += [np.asarray(row, dtype=np.int32) for row in found["input_ids"]]
        return ids

    def classifier(self, outputs: int, seed: int, device: torch.device) -> RobertaClassifier:
        """Return the trained encoder with a fresh head of ``outputs``, in training mode; on ``meta`` its shapes only.

        Weights of the head are drawn from a normal distribution with the configuration's ``initializer_range`` on the
        CPU, so that every device starts from the same ones; its biases are 0.
        """
        facts = {key: value for key, value in self.config.to_dict().items() if key not in {"id2label", "label2id"}}
        config = library().RobertaConfig.from_dict(facts | {"num_labels": outputs})
        if device.type == "meta":
            with torch.device("meta"):
                network = library().RobertaForSequenceClassification(config)
            return RobertaClassifier(network, config.pad_token_id)
        network = self._load(config)
        generator = torch.Generator().manual_seed(derive_seed(seed, "model"))
        for layer in (network.classifier.dense, network.classifier.out_proj):
            nn.init.normal_(layer.weight, 0.0, config.initializer_range, generator=generator)
            nn.init.zeros_(layer.bias)
        return RobertaClassifier(network, config.pad_token_id).train().to(device)

    def _load(self, config: Any) -> Any:
        kind, folder = library().RobertaForSequenceClassification, str(self.folder)
        options = {
            "dtype": torch.float32,
            "use_safetensors": True,
            "local_files_only": True,
            "attn_implementation": "sdpa",
            "ignore_mismatched_sizes": True,  # they are told below, where there are any
        }
        try:
            with _quiet():
                network, found = kind.from_pretrained(folder, config=config, output_loading_info=True, **options)
        except Exception as error:  # errors of files, shapes and safetensors, from three libraries
            raise BadData(f"{WEIGHTS} of {self.name} cannot be loaded: {_line(error)}", hint=_LAYOUT) from error
        missing = set(found["missing_keys"]) | {name for name, *_ in found["mismatched_keys"]}
        lacking = sorted(name for name in missing if not name.startswith("classifier."))
        if lacking:
            raise BadData(
                f"{WEIGHTS} of {self.name} lacks {len(lacking)} tensors of the shapes that its {CONFIG} says: "
                f"{', '.join(lacking[:3])}",
                hint=_LAYOUT,
            )
        if not all(name in missing for name, _ in network.named_parameters() if name.startswith("classifier.")):
            raise BadData(
                f"{self.name} holds a trained head, so it was fine-tuned before; every task starts from the base model",
                hint=_LAYOUT,
            )
        return network


def library() -> Any:
    """Return ``transformers``, which is imported where it is used, because that takes seconds."""
    try:
        import transformers
    except ImportError as error:
        raise BadData(
            f"RoBERTa needs the package 'transformers', which cannot be imported: {error}", hint=INSTALL_HF
        ) from error
    return transformers


def _from_hub() -> Path:
    library()
    try:
        import huggingface_hub

        paths = [Path(huggingface_hub.hf_hub_download(REPOSITORY, name, revision=COMMIT)) for name in _ON_HUB]
    except Exception as error:  # the client raises many unrelated kinds, and all say that a file could not be had
        raise BadData(
            f"cannot get {REPOSITORY} (revision {COMMIT[:12]}) from the Hugging Face hub: {_line(error)}",
            hint=f"without network name local files: {_LAYOUT}; and --data-dir DIR with GLUE itself; or "
            "HF_HUB_OFFLINE=1, where the caches of 'huggingface_hub' and 'datasets' have both",
        ) from error
    return paths[0].parent


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise BadData(f"{path.name!r} cannot be read: {error.strerror or error}", hint=str(path)) from error


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or repr(error)).splitlines()[0]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ``transformers`` from reporting that the head is new: it always is."""
    logging = library().utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
