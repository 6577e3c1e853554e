# SPDX-License-Identifier: GPL-3.0-or-later
"""A training plan against what this server has and may read, and its preflight.

The plan itself is judged by `onmodel.train.plan`, as from a file or the command line. What is
added here is what a request may not do and a person at the machine may: name a model by a path, or
folders outside of the roots (`onmodel.jobs.roots`).
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import onmodel
from onmodel.api import schemas
from onmodel.api.errors import ApiError
from onmodel.jobs.roots import RootError, Roots
from onmodel.jobs.trainings import NewTraining
from onmodel.train import plan_file
from onmodel.train.plan import PlanError, TrainingPlan, check

preflight_seconds = 240.0
max_name = 100


def new_training(
    request: schemas.TrainingRequest, told: dict[str, Any], roots: Roots
) -> NewTraining:
    """The training as the queue takes it. told: what the worker said it has.

    Raises ApiError 422 with a sentence.
    """
    plan = plan_of(request.plan, roots)
    model = model_of(plan, told["models"])
    return NewTraining(
        request.client_key,
        schemas.digest(request.model_dump(mode="json")),
        plan.name,
        request.priority,
        dataclasses.asdict(plan),
        model["hash"],
    )


def plan_of(tables: dict[str, Any], roots: Roots) -> TrainingPlan:
    """The whole, valid plan with its folders as they really lie. Raises ApiError 422."""
    tables = dict(tables)
    preset = tables.pop("preset", None)
    try:
        start = None if preset is None else plan_file.load_preset(str(preset))
        plan = check(plan_file.from_table(tables, start))
    except PlanError as error:
        raise ApiError(422, "bad_plan", error.message, error.fix) from error
    if len(plan.name) > max_name:
        raise ApiError(422, "bad_plan", f"The name has over {max_name} letters.", "Shorten name.")
    try:
        return plan_file.with_folders(plan, lambda folder: str(roots.folder(folder)))
    except RootError as error:
        raise ApiError(422, "bad_folder", error.message, error.fix) from error


def model_of(plan: TrainingPlan, models: list[dict[str, Any]]) -> dict[str, Any]:
    """The ModelInfo of the plan's base model. Raises ApiError 422; a path is never one."""
    named = {model["name"]: model for model in models}
    model = named.get(plan.base.model)
    if model is None:
        raise ApiError(
            422,
            "unknown_model",
            f"This server has no model “{plan.base.model}”.",
            f"Set base.model to one of its models: {', '.join(sorted(named)) or 'none'}.",
        )
    if model["family"] != plan.base.family:
        raise ApiError(
            422,
            "bad_plan",
            f"{plan.base.model} is of the {model['family']} family, the plan is for "
            f"{plan.base.family}.",
            "Take another base model or another preset.",
        )
    return model


def preflight(plan: TrainingPlan, data: Path, lock: threading.Lock) -> dict[str, Any]:
    """The report of a plan's preflight, made by a process of its own; one at a time.

    data: the data folder. Blocks for seconds. Raises ApiError.
    """
    package = Path(onmodel.__file__).parents[1]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUTF8": "1",
        "ONMODEL_HOME": str(data),
    }
    asked = {"plan": dataclasses.asdict(plan), "out": str(data)}
    with lock:
        try:
            done = subprocess.run(
                [sys.executable, "-m", "onmodel.train.look"],
                input=json.dumps(asked),
                capture_output=True,
                text=True,
                encoding="utf-8",
                env=environment,
                timeout=preflight_seconds,
                check=False,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except subprocess.TimeoutExpired as error:
            raise ApiError(
                504,
                "too_slow",
                f"Looking at the pictures took over {preflight_seconds:g} seconds.",
                "Submit the training: it looks at them without a limit before it begins.",
            ) from error
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ApiError(
            500,
            "internal",
            "Looking at the pictures failed.",
            f"It ended with code {done.returncode}: {done.stderr.strip()[-300:]}",
        ) from error
    if done.returncode:
        raise ApiError(422, "bad_plan", answer["message"], answer["fix"])
    return answer
