# SPDX-License-Identifier: GPL-3.0-or-later
"""Plans as TOML files, presets, and overrides of the command line.

A file has `name` and one table per part ([base], [data], …); what it leaves out has its default.
A file or a preset may begin with `preset = "sdxl"`: then what it leaves out comes from there.
A key that no plan has is refused, with the nearest key that exists.
"""

from __future__ import annotations

import difflib
import json
import tomllib
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from onmodel.train.plan import PlanError, TrainingPlan

preset_folder = Path(__file__).resolve().parent / "presets"


def preset_names() -> tuple[str, ...]:
    """The names of the presets that come with the package."""
    return tuple(sorted(path.stem for path in preset_folder.glob("*.toml")))


def load_preset(name: str) -> TrainingPlan:
    """A preset: a plan that leaves model, images, trigger and noun open. Raises PlanError."""
    if name not in preset_names():
        raise PlanError(
            f"There is no preset “{name}”.{_nearest(name, preset_names())}",
            f"The presets are {', '.join(preset_names())}.",
        )
    return from_toml((preset_folder / f"{name}.toml").read_text("utf-8"))


def read(path: Path) -> TrainingPlan:
    """The plan of a file; relative folders in it are relative to the file. Raises PlanError."""
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"The plan {path} cannot be read: {error}.") from error
    return with_folders(from_toml(text), lambda folder: str(path.parent / folder))


folder_keys = ("data.images", "data.regularisation", "validation.references", "validation.maps")
"""Keys whose values are folders."""


def with_folders(plan: TrainingPlan, place: Callable[[str], str]) -> TrainingPlan:
    """The plan with `place` of each folder that it names."""
    table: dict[str, dict[str, str]] = {}
    for key in folder_keys:
        folder = value_of(plan, key)
        if folder:
            part, _, sub = key.partition(".")
            table.setdefault(part, {})[sub] = place(folder)
    return from_table(table, plan)


def from_toml(text: str) -> TrainingPlan:
    """The plan of a TOML text. Raises PlanError for what is not TOML, not a key, not a value."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PlanError(f"The plan is not TOML: {error}.", "Correct that line.") from error
    preset = table.pop("preset", None)
    start = TrainingPlan() if preset is None else load_preset(str(preset))
    return from_table(table, start)


def from_table(table: Mapping[str, Any], start: TrainingPlan | None = None) -> TrainingPlan:
    """`start` (or the defaults) with the values of nested tables put in. Raises PlanError."""
    plan: TrainingPlan = _fill(start or TrainingPlan(), table, "")
    return plan


def _fill(part: Any, table: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(type(part))
    changes: dict[str, Any] = {}
    for key, value in table.items():
        full = f"{prefix}{key}"
        if key not in hints:
            raise PlanError(
                f"A plan has no key “{full}”.{_nearest(full, all_keys())}",
                "The keys are in docs/train.md.",
            )
        old = getattr(part, key)
        if is_dataclass(old):
            if not isinstance(value, Mapping):
                raise PlanError(f"{full} is a table of keys, not a value.", f"Write [{full}].")
            changes[key] = _fill(old, value, f"{full}.")
        else:
            changes[key] = _value(full, value, hints[key])
    return replace(part, **changes)


def _value(key: str, value: Any, hint: Any) -> Any:
    """The value as the hint wants it: whole numbers serve as floats, lists as tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        for kind in arguments:
            if _fits(value, kind):
                return _value(key, value, kind)
        raise _wrong(key, value, hint)
    if not _fits(value, hint):
        raise _wrong(key, value, hint)
    if hint is float:
        return float(value)
    if origin is tuple:
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(kinds) != len(value):
            raise _wrong(key, value, hint)
        return tuple(_value(key, v, k) for v, k in zip(value, kinds, strict=True))
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if origin is typing.Literal:
        return isinstance(value, str)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _wrong(key: str, value: Any, hint: Any) -> PlanError:
    shown = json.dumps(value, default=str, ensure_ascii=False)
    return PlanError(f"{key} is {shown}.", f"It has to be {_words(hint)}.")


def _words(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(kind) for kind in arguments)
    if origin is tuple:
        if arguments[-1] is Ellipsis:
            return f"a list, each {_words(arguments[0])}"
        return f"a list of {len(arguments)}, each {_words(arguments[0])}"
    if origin is typing.Literal:
        return "one of " + ", ".join(arguments)
    return {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        type(None): "none",
    }[hint]


def all_keys() -> tuple[str, ...]:
    """Every key of a plan, parts with their keys: "name", "data.images", …"""
    plan = TrainingPlan()
    keys: list[str] = []
    for item in fields(plan):
        part = getattr(plan, item.name)
        if is_dataclass(part):
            keys += [f"{item.name}.{sub.name}" for sub in fields(part)]
        else:
            keys.append(item.name)
    return tuple(keys)


def _nearest(key: str, known: Iterable[str]) -> str:
    known = tuple(known)
    near = difflib.get_close_matches(key, known, 1, 0.6)
    if not near:
        last = key.rpartition(".")[2]  # the right key in the wrong table
        near = [k for k in known if k.rpartition(".")[2] == last][:1]
    return f" Did you mean “{near[0]}”?" if near else ""


def with_overrides(plan: TrainingPlan, settings: Iterable[str]) -> TrainingPlan:
    """The plan with "key.sub=value" put in, one after the other. Raises PlanError.

    Values are written as in TOML; `none` is the absence of a value, and a text needs no quotes:
    schedule.steps=400, schedule.epochs=none, data.noun=woman, optimizer.betas=[0.9, 0.99].
    """
    for setting in settings:
        key, sign, raw = setting.partition("=")
        key, raw = key.strip(), raw.strip()
        if not sign:
            raise PlanError(f"“{setting}” sets nothing.", "Write it as key.sub=value.")
        if key not in all_keys():
            raise PlanError(
                f"A plan has no key “{key}”.{_nearest(key, all_keys())}",
                "The keys are in docs/train.md.",
            )
        part, _, sub = key.rpartition(".")
        table = {part: {sub: _literal(raw)}} if part else {sub: _literal(raw)}
        try:
            plan = from_table(table, plan)
        except PlanError as error:
            # A text may look like a number: a trigger "007".
            table = {part: {sub: raw}} if part else {sub: raw}
            try:
                plan = from_table(table, plan)
            except PlanError:
                raise error from None
    return plan


def _literal(raw: str) -> Any:
    if raw.lower() == "none":
        return None
    try:
        return tomllib.loads(f"value = {raw}")["value"]
    except tomllib.TOMLDecodeError:
        return raw


def to_toml(plan: TrainingPlan, comment: str = "") -> str:
    """The plan as TOML, every key written; None is written by leaving the key out.

    comment: lines that go on top. Reading it back gives an equal plan.
    """
    lines = [f"# {line}".rstrip() for line in comment.splitlines()]
    lines.append(f"name = {toml_value(plan.name)}")
    for item in fields(plan):
        part = getattr(plan, item.name)
        if not is_dataclass(part):
            continue
        lines += ["", f"[{item.name}]"]
        for sub in fields(part):
            value = getattr(part, sub.name)
            if value is not None:
                lines.append(f"{sub.name} = {toml_value(value)}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """One value as TOML 1.0 writes it. Raises TypeError for what TOML cannot hold."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are a subset of TOML's basic strings, but for DEL.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    raise TypeError(f"TOML has no {type(value).__name__}")


def value_of(plan: TrainingPlan, key: str) -> Any:
    """The value of a key such as "adapter.rank"."""
    value: Any = plan
    for part in key.split("."):
        value = getattr(value, part)
    return value
