# SPDX-License-Identifier: GPL-3.0-or-later
"""What a head is drawn by: its character's prompt, and of the shot's prompt what is true of a face.

A shot's prompt tells of places, people and framing too ("two people, full body shot, park,
animated"). In the square of one head they would be drawn into it; the way it is drawn and lit is
true there as well.
"""

from __future__ import annotations

import re
from typing import Any

from onmodel.generate.regions import character_prompt

framing = "close-up"

_styles = """
realistic photorealistic photo photos photograph photography photographic analog analogue
polaroid 35mm 70mm kodak film cinematic noir monochrome sepia grain hdr raw
animated animation animé anime manga cartoon toon comic cel cel-shaded claymation stop-motion
illustration illustrated storybook graphic drawing drawn sketch sketched pencil pen ink inked
crayon charcoal pastel painting painted painterly watercolor watercolour gouache acrylic oil
fresco woodcut engraving etching linocut pixel 2d 3d cgi render rendered unreal octane clay
stylized stylised style aesthetic impressionist expressionist baroque
light lights lighting lit backlit backlight sunlit moonlit sunlight moonlight daylight
candlelight firelight neon shadow shadows shade contrast high-key low-key hazy overcast chiaroscuro
morning dawn sunrise noon midday afternoon evening sunset dusk twilight night midnight
sharp focus detailed quality masterpiece resolution 4k 8k
"""
style_words = frozenset(_styles.split())
style_phrases = ("black and white", "golden hour", "blue hour", "rim light", "soft light")

_word = re.compile(r"[\w-]+")


def style_of(prompt: str) -> str:
    """The parts of a prompt, between its commas and lines, that say how it is drawn and lit."""
    parts = [part.strip() for part in re.split(r"[,;.\n]", prompt)]
    return ", ".join(part for part in parts if part and _is_style(part.lower()))


def _is_style(part: str) -> bool:
    words = set(_word.findall(part))
    return bool(words & style_words) or any(phrase in part for phrase in style_phrases)


def head_prompt(character: dict[str, Any], shot: str) -> str:
    """ "<trigger> <noun>, <prompt>, close-up, <the shot's style>" of a character of a request."""
    own = character_prompt(
        character.get("trigger", ""), character["noun"], character.get("prompt", "")
    )
    return ", ".join(part for part in (own, framing, style_of(shot)) if part)
