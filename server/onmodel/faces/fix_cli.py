# SPDX-License-Identifier: GPL-3.0-or-later
"""The arguments of `onmodel faces fix`; what it does is in onmodel/faces/fix.py.

Only arguments are here, so that `onmodel --help` imports neither numpy nor Pillow.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from onmodel.faces.person import Person


class _NewPerson(argparse.Action):
    """--character NAME begins a character."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        people = list(getattr(namespace, self.dest) or [])
        if any(person.name == values for person in people):
            raise argparse.ArgumentError(self, f"{values} is there twice")
        setattr(namespace, self.dest, [*people, Person(str(values))])


class _OfPerson(argparse.Action):
    """An option of the last --character: its field of the option's name, or one more of it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        people: list[Person] = getattr(namespace, "characters", None) or []
        if not people:
            raise argparse.ArgumentError(self, "comes after the --character that it is of")
        name = {"lora": "loras", "reference": "references"}.get(self.dest, self.dest)
        if isinstance(getattr(people[-1], name), list):
            getattr(people[-1], name).append(values)
        else:
            setattr(people[-1], name, values)


def lora(text: str) -> tuple[str, float]:
    """NAME or NAME:WEIGHT. Raises ArgumentTypeError for a weight that is none."""
    name, colon, weight = text.rpartition(":")
    if not colon:
        return text, 1.0
    try:
        return name, float(weight)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is no LoRA; write NAME or NAME:0.8.") from error


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1.")
    return value


def _strength(text: str) -> float:
    if _share(text) == 0:
        raise argparse.ArgumentTypeError("0 would draw nothing; give more than 0, to 1.")
    return _share(text)


def add_fix_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds `fix` to `onmodel faces`."""
    parser = actions.add_parser(
        "fix", help="draw the faces of pictures again, each as its own character"
    )
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE")
    person = parser.add_argument_group("characters", "each option is of the --character before it")
    person.add_argument(
        "--character",
        dest="characters",
        action=_NewPerson,
        required=True,
        metavar="NAME",
        help="begins a character; repeatable",
    )
    of: dict[str, Any] = {"action": _OfPerson, "default": argparse.SUPPRESS}
    person.add_argument("--lora", type=lora, metavar="NAME[:WEIGHT]", help="repeatable", **of)
    person.add_argument(
        "--reference", type=Path, metavar="FILE", help="a portrait; three are usual", **of
    )
    person.add_argument("--noun", help="what it is: woman, old man [person]", **of)
    person.add_argument("--trigger", help="the word that its LoRA was trained with", **of)
    person.add_argument("--prompt", help="what is true of it here: red coat, angry", **of)
    parser.add_argument("--model", default="", help="left out: the first that is here")
    parser.add_argument("--style", default="", help="how the pictures are drawn and lit")
    parser.add_argument("--negative", default="", help="negative prompt")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--steps", type=int, help="left out: the model's")
    parser.add_argument("--first", type=_strength, default=0.6, help="denoise under the mask [0.6]")
    parser.add_argument("--second", type=_share, default=0.4, help="denoise without a mask [0.4]")
    parser.add_argument("--size", type=int, help="pixels of a head's square; left out: the model's")
    parser.add_argument("--min-height", type=float, default=24.0, help="pixels of a head [24]")
    parser.add_argument("--feather", type=_share, default=0.04, help="of the head's height [0.04]")
    parser.add_argument(
        "--keep-worse", action="store_true", help="keep repairs that lower the score too"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="left out: beside each picture")
    parser.add_argument("--pack", type=Path, help="folder of an InsightFace pack")
    parser.add_argument("--accept-licence", action="store_true", help="for InsightFace's packs")
    parser.add_argument("--parser", type=Path, metavar="DIR", help="folder of a face parser")
    parser.add_argument("--data", type=Path, metavar="DIR", help="data folder")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    from onmodel.faces.fix import run

    return run(options)
