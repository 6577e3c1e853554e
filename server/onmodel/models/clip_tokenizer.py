# SPDX-License-Identifier: GPL-3.0-or-later
"""CLIP's tokenizer from the byte pair merges that ship with the package, for single files.

A checkpoint in one file carries no tokenizer. All SDXL models use CLIP's, whose 48,894 merges are
shipped once (MIT, as in the package open-clip-torch) and make the same token numbers.
"""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path
from typing import Any

from onmodel.models.errors import ModelError

vocabulary = (
    Path(__file__).resolve().parent.parent / "rehearsal/tokenizer/bpe_simple_vocab_16e6.txt.gz"
)
_merge_count = 49152 - 256 - 2


def make(pad: str) -> Any:
    """A CLIPTokenizer of 77 tokens. pad: SDXL's first takes "<|endoftext|>", its second "!"."""
    from transformers import CLIPTokenizer

    vocab, merges = _tables()
    return CLIPTokenizer(vocab=dict(vocab), merges=list(merges), pad_token=pad, model_max_length=77)


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, int], Any]:
    """Token to number, and merges in order (OpenAI's CLIP, simple_tokenizer.py)."""
    try:
        with gzip.open(vocabulary, "rt", encoding="utf-8") as lines:
            rows = [line.split() for line in lines][1 : _merge_count + 1]
    except OSError as error:
        raise ModelError(
            f"CLIP's vocabulary is missing from the installation ({vocabulary.name}).",
            "Install Onmodel again.",
        ) from error
    merges = [(row[0], row[1]) for row in rows]
    letters = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # The 68 bytes that do not print stand as the characters from 256 on.
    symbols = [chr(c) for c in letters] + [chr(256 + i) for i in range(256 - len(letters))]
    tokens = [*symbols, *(s + "</w>" for s in symbols), *(a + b for a, b in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges
