# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server last said of itself (`GET /v1/info`), kept for the length of the session.

The search fields of the scene's settings offer these words; nothing here talks to a server, so
the settings work offline too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_info: dict[str, Any] = {}


def remember(info: Mapping[str, Any] | None) -> None:
    """Keep the server's info; None forgets it."""
    _info.clear()
    _info.update(info or {})


def info() -> dict[str, Any]:
    """The info as the server gave it, or an empty dict."""
    return dict(_info)


def models() -> list[dict[str, Any]]:
    """The server's models, in its order (ModelInfo, see `GET /v1/info`)."""
    return list(_info.get("models", []))


def model_names() -> list[str]:
    """The names of the server's models."""
    return [str(m["name"]) for m in models()]


def model(name: str) -> dict[str, Any] | None:
    """The model of this name; for an empty name the first one; None when there is none."""
    for m in models():
        if not name or m["name"] == name:
            return m
    return None


def presets(model_name: str) -> list[str]:
    """The sampling presets of a model, "default" first."""
    found = model(model_name)
    names = [str(p["name"] if isinstance(p, dict) else p) for p in (found or {}).get("presets", [])]
    return ["default", *(n for n in names if n != "default")]
