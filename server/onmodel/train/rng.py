# SPDX-License-Identifier: GPL-3.0-or-later
"""All chance of a run comes from its seed and the step, so a resumed run needs no saved state."""

from __future__ import annotations

import hashlib

import torch


def seed_of(*parts: object) -> int:
    """63 bits that depend on the parts alone, the same on every machine."""
    text = "/".join(str(p) for p in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


def generator(*parts: object) -> torch.Generator:
    """A CPU generator for these parts. Numbers are drawn on the CPU on every device, so a run
    sees the same noise wherever it goes on."""
    return torch.Generator().manual_seed(seed_of(*parts))
