# SPDX-License-Identifier: GPL-3.0-or-later
"""Where a render session is, and how it ends. No bpy."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from .items import Item, ItemState, final_states


class State(enum.Enum):
    """Where the session is."""

    planning = "planning"
    capturing = "capturing"
    sending = "sending"
    drawing = "drawing"
    placing = "placing"
    cancelling = "cancelling"
    done = "done"
    failed = "failed"
    cancelled = "cancelled"


ended = (State.done, State.failed, State.cancelled)


class Failure(enum.Enum):
    """Why a session failed; the command line makes exit codes of it."""

    none = "none"
    scene = "scene"
    server = "server"
    keyframes = "keyframes"
    disk = "disk"


@dataclass(frozen=True)
class Ending:
    """How a session ended, in sentences."""

    state: State
    message: str
    fix: str = ""


def ending(items: Sequence[Item], check: bool) -> Ending:
    """How a session ends whose keyframes are all through. check: nothing was to be drawn.

    Of keyframes that are not through, the server has said nothing; they have failed.
    """
    for item in items:
        if item.state not in final_states:
            item.state = ItemState.failed
            item.message, item.fix = "The server said nothing of it.", "Draw it again."
    failed = [i for i in items if i.state is ItemState.failed]
    if failed:
        first = failed[0]
        return Ending(
            State.failed,
            f"{len(failed)} of {len(items)} keyframes could not be drawn. "
            f"Shot {first.shot}, frame {first.frame}: {first.message}",
            first.fix or "Draw again: only these are tried.",
        )
    cancelled = sum(i.state is ItemState.cancelled for i in items)
    if cancelled:
        return Ending(
            State.cancelled,
            f"{cancelled} of {len(items)} keyframes were cancelled.",
            "Draw again: only these are drawn.",
        )
    if check:
        changed = sum(i.state is ItemState.changed for i in items)
        if changed:
            return Ending(State.done, f"{changed} of {len(items)} keyframes are to be drawn.")
        return Ending(State.done, "Nothing changed since it was drawn.")
    kept = sum(i.state is ItemState.kept for i in items)
    message = f"{len(items) - kept} keyframes drawn"
    return Ending(State.done, message + (f", {kept} were drawn already." if kept else "."))
