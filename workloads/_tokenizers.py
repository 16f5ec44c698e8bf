"""Tokenizers of language-model workloads: bytes, and the SentencePiece vocabulary of T5.

Both use T5's special tokens: pad is id 0, end of sequence (EOS) is id 1, and there is no token for the beginning.
Neither appends EOS: that is done where documents are cut into sequences.
"""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.errors import BadData

if TYPE_CHECKING:
    from collections.abc import Sequence

PAD: Final = 0
EOS: Final = 1
Tokens = NDArray[np.uint16]
"""Token ids; both vocabularies fit 16 bits."""

INSTALL_HF: Final = 'pip install "bench-training[hf]"'
_UNKNOWN: Final = 2
_T5_FILE: Final = "name the tokenizer.json of T5, as in huggingface.co/t5-base, or use the byte-level tokenizer"


class Tokenizer(Protocol):
    """Turns documents into token ids below ``vocabulary``, none of which is ``PAD`` or ``EOS``."""

    @property
    def vocabulary(self) -> int:
        """Size of the vocabulary: ids lie in [0, vocabulary)."""

    @property
    def identity(self) -> str:
        """What decides the ids: the name, and for a vocabulary from a file its SHA-256."""

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text, without EOS."""


class ByteTokenizer:
    """Ids are the bytes of UTF-8.

    The bytes 0 and 1 stand for pad and EOS; in the text itself, where they have no business, they are dropped.
    """

    vocabulary = 256
    identity = "bytes"

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the bytes of each text as ids."""
        return [np.frombuffer(text.encode().translate(None, b"\0\1"), np.uint8).astype(np.uint16) for text in texts]


class T5Tokenizer:
    """The vocabulary of T5 (SentencePiece, 32,000 pieces), through the package ``tokenizers``.

    Args:
        file: a ``tokenizer.json``; ``None`` takes that of ``t5-base`` from the Hugging Face hub or its local cache.

    T5's 100 extra ids (from 32,000 on; literal text such as ``<extra_id_0>``) lie outside the model's vocabulary, and
    the literals ``<pad>`` and ``</s>`` in a text are no pad and no end: all of them become the unknown token, id 2.

    Raises:
        BadData: ``tokenizers`` is not installed, or the file is out of reach, damaged, or not T5's.
    """

    vocabulary = 32_000

    def __init__(self, file: Path | None = None) -> None:
        self.file = _hub_file("t5-base", "tokenizer.json") if file is None else file

    @cached_property
    def identity(self) -> str:
        """``t5:`` and the SHA-256 of the tokenizer file."""
        return f"t5:{sha256(self._content).hexdigest()}"

    @cached_property
    def _content(self) -> bytes:
        try:
            return self.file.read_bytes()
        except OSError as error:
            raise BadData(
                f"cannot read the tokenizer {str(self.file)!r}: {error.strerror or error}", hint=_T5_FILE
            ) from error

    @cached_property
    def _tokenizer(self) -> Any:
        try:
            import tokenizers
        except ImportError as error:
            raise BadData("the T5 tokenizer needs the package 'tokenizers'", hint=INSTALL_HF) from error
        try:
            tokenizer = tokenizers.Tokenizer.from_buffer(self._content)
        except ValueError as error:
            raise BadData(f"{str(self.file)!r} is not a tokenizer file: {error}", hint=_T5_FILE) from error
        found = (tokenizer.token_to_id("<pad>"), tokenizer.token_to_id("</s>"))
        if found != (PAD, EOS):
            raise BadData(
                f"{str(self.file)!r} is not T5's vocabulary: its <pad> and </s> have ids {found}, T5's {(PAD, EOS)}",
                hint=_T5_FILE,
            )
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def encode(self, texts: Sequence[str]) -> list[Tokens]:
        """Return the ids of each text; the texts of one call are tokenised in parallel."""
        result = []
        for encoding in self._tokenizer.encode_batch(list(texts), add_special_tokens=False):
            ids = np.asarray(encoding.ids, dtype=np.int64)
            ids[(ids <= EOS) | (ids >= self.vocabulary)] = _UNKNOWN
            result.append(ids.astype(np.uint16))
        return result


def _hub_file(repository: str, name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise BadData("the T5 tokenizer needs the package 'tokenizers'", hint=INSTALL_HF) from error
    try:
        return Path(huggingface_hub.hf_hub_download(repository, name))
    except Exception as error:  # the client raises many unrelated kinds, and all say that the file could not be had
        raise BadData(
            f"cannot get {name} of {repository} from the Hugging Face hub: {type(error).__name__}: {error}",
            hint="go online once (the file stays in the cache, also for HF_HUB_OFFLINE=1); or name a local "
            "tokenizer.json; or use the byte-level tokenizer",
        ) from error
