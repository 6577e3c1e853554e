# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run is asked for. No bpy."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.retakes import RetakeRule


@dataclass(frozen=True)
class TakeSettings:
    """What is asked of this run, besides what the scene says.

    takes: how many of each keyframe; None as each shot says. only_take: nothing but the take of
    this number, without retakes; the artist wants to see it. retakes: None as the film says
    (`core.retakes.never` for none). face_pass: False leaves the film's out. frames: only these
    (shot name, frame) pairs. redraw: fetch keyframes again that are drawn already. place: put
    image planes into the scene. keep_maps: write the maps and masks beside the takes. retries: how
    often failed keyframes are tried again by themselves. patience: seconds to look for a lost
    server. check: capture only, and say which keyframes are not drawn as they are now; nothing is
    sent, written or placed.
    """

    takes: int | None = None
    only_take: int | None = None
    retakes: RetakeRule | None = None
    face_pass: bool = True
    frames: frozenset[tuple[str, int]] | None = None
    redraw: bool = False
    place: bool = True
    keep_maps: bool = False
    retries: int = 1
    patience: float = 20.0
    previews: bool = False
    check: bool = False
