# SPDX-License-Identifier: GPL-3.0-or-later
"""Before a run: what every picture becomes, how long it takes, what it needs, what forbids it."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from onmodel.models.errors import ModelError
from onmodel.train import maps
from onmodel.train import plan as plans
from onmodel.train.buckets import Order
from onmodel.train.dataset import DataSet, content_digest, scan
from onmodel.train.estimates import (
    Estimate,
    ModelFacts,
    estimate,
    facts,
    find_model,
    gib,
    narrowest,
    readable,
    target_layers,
)
from onmodel.train.plan import PlanError, TrainingPlan

packages = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
"""Optimizers that need a package which not every installation has."""

much_lost = 0.10


@dataclass(frozen=True)
class Measurement:
    """What the engine measured on a few steps of the plan.

    seconds_per_step: median. peak_bytes: of the device's memory, 0 where it cannot be told.
    """

    seconds_per_step: float
    peak_bytes: int = 0
    device: str = ""
    steps: int = 0


@dataclass(frozen=True)
class Device:
    """What the run computes on. kind: "cpu", "cuda", "mps", "xpu". memory: free bytes."""

    kind: str
    memory: int
    bf16: bool = True


@dataclass(frozen=True)
class BucketRow:
    """One bucket: its size, its pictures, its showings in an epoch, the worst crop's share."""

    width: int
    height: int
    pictures: int
    showings: int
    lost: float


@dataclass(frozen=True)
class Report:
    """What `preflight` found. problems: while there is one, the run must not start."""

    plan: TrainingPlan
    data: DataSet = field(default_factory=DataSet)
    order: Order | None = None
    model: ModelFacts | None = None
    estimate: Estimate | None = None
    measurement: Measurement | None = None
    free_disk: int = 0
    device: Device | None = None
    problems: tuple[PlanError, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the run may start."""
        return not self.problems

    @property
    def steps(self) -> int:
        """Steps of the run, 0 where it cannot start."""
        return self.order.steps if self.order else 0

    @property
    def seconds(self) -> float | None:
        """Expected length of the run without validation drawings, None without a measurement."""
        return self.measurement.seconds_per_step * self.steps if self.measurement else None

    def buckets(self) -> list[BucketRow]:
        """The buckets, the fullest first."""
        if self.order is None:
            return []
        rows = []
        for bucket in self.order.buckets:
            fits = [f for f in self.order.fits if f.bucket == bucket]
            lost = max(f.lost for f in fits)
            rows.append(BucketRow(*bucket, len(fits), self.order.in_bucket(bucket), lost))
        return sorted(rows, key=lambda r: (-r.showings, r.width))

    def json(self) -> dict[str, Any]:
        """Plain data, without absolute paths."""
        order, needs = self.order, self.estimate
        fits = order.fits if order else ()
        lost = {p.name: f.lost for p, f in zip(self.data.pictures, fits, strict=False)}
        return {
            "ok": self.ok,
            "name": self.plan.name,
            "kept": [
                {
                    "name": p.name,
                    "size": [p.width, p.height],
                    "caption": p.caption,
                    "repeats": p.repeats,
                    "regularisation": p.regularisation,
                    "mask": round(p.mask_share, 4) if p.mask else None,
                    "maps": [m.kind for m in p.maps],
                    "lost": round(lost.get(p.name, 0.0), 4),
                    "notes": list(p.notes),
                }
                for p in self.data.pictures
            ],
            "refused": [asdict(r) for r in self.data.refused],
            "notes": list(self.data.notes),
            "content": content_digest(self.data),
            "buckets": [asdict(row) for row in self.buckets()],
            "steps": self.steps,
            "epochs": round(order.epochs, 3) if order else 0,
            "showings_per_epoch": order.showings if order else 0,
            "batches_per_epoch": order.batches_per_epoch if order else 0,
            "trained_weights": needs.trained if needs else None,
            "memory_bytes": needs.memory if needs else None,
            "disk_bytes": needs.disk if needs else None,
            "cache_bytes": needs.cache if needs else None,
            "checkpoint_bytes": needs.checkpoint if needs else None,
            "free_disk_bytes": self.free_disk,
            "device": asdict(self.device) if self.device else None,
            "measured": asdict(self.measurement) if self.measurement else None,
            "seconds": self.seconds,
            "problems": [{"message": p.message, "fix": p.fix} for p in self.problems],
            "warnings": list(self.warnings),
        }


def preflight(
    plan: TrainingPlan,
    measure: Callable[[], Measurement] | None = None,
    *,
    out: Path | None = None,
    device: Device | None = None,
) -> Report:
    """Looks at everything that a run of the plan will touch, and writes nothing.

    measure: makes a few steps and throws them away (the engine's); it is called only if nothing
    else forbids the run. out: where the run will write, for its free disk. device: what it runs
    on; None: asked of torch.
    """
    problems = plans.problems(plan)
    if problems:
        return Report(plan, problems=tuple(problems))
    warnings: list[str] = []
    try:
        data = scan(plan.data)
    except PlanError as error:
        return Report(plan, problems=(error,))
    order = _order(plan, data, problems)
    _data_checks(plan, data, order, problems, warnings)
    device = device or this_device()
    _device_checks(plan, device, problems, warnings)
    model = _model(plan, problems)
    needs = None
    if model is not None:
        _model_checks(plan, model, problems, warnings)
        _word_checks(plan, model, data, warnings)
        if order is not None:
            needs = estimate(plan, model, order, len(data.pictures))
    free = _free_disk(out)
    if needs:
        _room_checks(needs, free, device, problems, warnings)
    measurement = None
    if measure is not None and not problems:
        try:
            measurement = measure()
        except (PlanError, ModelError) as error:
            problems.append(PlanError(error.message, error.fix))
    return Report(
        plan,
        data,
        order,
        model,
        needs,
        measurement,
        free,
        device,
        tuple(problems),
        tuple(warnings),
    )


def this_device() -> Device:
    """The device that the server would draw on, with its free memory."""
    from onmodel.models.memory import choose_place

    place = choose_place(0)
    kind = place.device.partition(":")[0]
    bf16 = kind != "cuda" or place.dtype == "bfloat16"
    return Device(kind, place.total, bf16)


def _order(plan: TrainingPlan, data: DataSet, problems: list[PlanError]) -> Order | None:
    if not data.own:
        refused = len([r for r in data.refused if not r.regularisation])
        what = f"all {refused} were refused" if refused else "the folder holds none"
        problems.append(
            PlanError(
                f"No picture is left to train on: {what}.",
                "The reasons are listed with the pictures."
                if refused
                else "Put PNG, JPEG or WebP pictures into data.images.",
            )
        )
        return None
    try:
        return Order(data.pictures, plan)
    except PlanError as error:
        problems.append(error)
        return None


def _data_checks(
    plan: TrainingPlan,
    data: DataSet,
    order: Order | None,
    problems: list[PlanError],
    warnings: list[str],
) -> None:
    """What the pictures say against the plan."""
    own, masked = data.own, [p for p in data.own if p.mask]
    if own and plan.loss.masked and not masked:
        problems.append(
            PlanError(
                "The loss is masked, but no picture has a mask.",
                "Put NAME.mask.png beside the pictures, or set loss.masked to false.",
            )
        )
    elif plan.loss.masked and len(masked) < len(own):
        names = ", ".join([p.name for p in own if not p.mask][:5])
        warnings.append(
            f"{len(own) - len(masked)} of {len(own)} pictures have no mask and count as a whole: "
            f"{names}."
        )
    if plan.data.regularisation is not None and not data.others:
        problems.append(
            PlanError(
                "No regularisation picture is left.",
                "See why each was refused, or leave data.regularisation out.",
            )
        )
    if plan.data.regularisation is None and plan.loss.prior_weight != 1.0:
        problems.append(
            PlanError(
                f"loss.prior_weight is {plan.loss.prior_weight:g}, but there are no "
                "regularisation pictures to weigh.",
                "Set data.regularisation, or leave loss.prior_weight out.",
            )
        )
    mapped = [p for p in own if p.maps]
    if own and plan.data.conditioning and not mapped:
        warnings.append(
            "The plan trains with maps, but no picture has one: it learns without. Put "
            "NAME.pose.png, NAME.depth.png or NAME.normal.png beside the pictures."
        )
    elif plan.data.conditioning and len(mapped) < len(own):
        names = ", ".join([p.name for p in own if not p.maps][:5])
        warnings.append(f"{len(own) - len(mapped)} of {len(own)} pictures have no map: {names}.")
    _validation_checks(plan, problems, warnings)
    if 0 < len(own) < 8:
        warnings.append(
            f"{len(own)} pictures are few: a character needs some 15 to 30, in several framings, "
            "views and expressions."
        )
    if order is not None:
        _order_checks(plan, data, order, problems, warnings)


def _validation_checks(plan: TrainingPlan, problems: list[PlanError], warnings: list[str]) -> None:
    """What the validation drawings need."""
    references, folder = plan.validation.references, plan.validation.maps
    if references is not None and not Path(references).expanduser().is_dir():
        problems.append(
            PlanError(
                f"There is no folder {references}.",
                "Set validation.references to a folder of pictures of the character, or leave "
                "it out.",
            )
        )
    if folder is not None:
        try:
            maps.map_sets(plan, Path(folder).expanduser())
        except PlanError as error:
            problems.append(error)
    if plan.validation.every:
        bare = [v for v in plan.validation_prompts() if plan.data.trigger not in v]
        if bare:
            warnings.append(f"This validation prompt does not name the character: “{bare[0]}”.")


def _order_checks(
    plan: TrainingPlan,
    data: DataSet,
    order: Order,
    problems: list[PlanError],
    warnings: list[str],
) -> None:
    if plan.schedule.warm_up >= order.steps:
        problems.append(
            PlanError(
                f"The rate still rises at the last of {order.steps} steps.",
                "Make schedule.warm_up smaller or the run longer.",
            )
        )
    if order.epochs < 1:
        warnings.append(
            f"{order.steps} steps are less than one epoch: some pictures are never shown."
        )
    for picture, fit in zip(data.pictures, order.fits, strict=True):
        if fit.lost > much_lost:
            warnings.append(
                f"{picture.name} loses {fit.lost:.0%} of its pixels to the crop to "
                f"{fit.bucket[0]} x {fit.bucket[1]}."
            )
    if plan.run.save_every > order.steps:
        warnings.append("The run saves nothing before its end: run.save_every is beyond it.")
    if plan.validation.every > order.steps:
        warnings.append("There are no validation drawings: validation.every is beyond the run.")


def _device_checks(
    plan: TrainingPlan, device: Device, problems: list[PlanError], warnings: list[str]
) -> None:
    dtype = plan.base.dtype
    if device.kind == "cpu" and dtype == "fp16":
        problems.append(
            PlanError(
                "A CPU cannot train in fp16.", "Set base.dtype to fp32 (or bf16 to save memory)."
            )
        )
    if device.kind == "cpu" and dtype == "bf16":
        warnings.append("bf16 saves memory on a CPU, but most CPUs compute faster in fp32.")
    if dtype == "bf16" and not device.bf16:
        problems.append(PlanError("This GPU knows no bf16.", "Set base.dtype to fp16 or fp32."))
    if dtype == "fp16":
        warnings.append("fp16 can overflow where bf16 does not; prefer bf16 where the GPU has it.")
    name = plan.optimizer.name
    package = packages.get(name)
    if package and importlib.util.find_spec(package) is None:
        problems.append(
            PlanError(
                f"The optimizer {name} needs the package {package}, which is not installed.",
                f"Install it (pip install {package}), or set optimizer.name to adamw.",
            )
        )
    elif name == "adamw8bit" and device.kind != "cuda":
        problems.append(
            PlanError("adamw8bit runs on CUDA GPUs only.", "Set optimizer.name to adamw.")
        )
    if name == "prodigy" and plan.optimizer.rate < 0.1:
        warnings.append(
            f"Prodigy finds the rate itself and multiplies it by optimizer.rate, which is "
            f"{plan.optimizer.rate:g}: 1.0 is usual."
        )


def _model(plan: TrainingPlan, problems: list[PlanError]) -> ModelFacts | None:
    try:
        return facts(find_model(plan.base))
    except (ModelError, OSError) as error:
        fix = error.fix if isinstance(error, ModelError) else ""
        message = error.message if isinstance(error, ModelError) else str(error)
        problems.append(PlanError(message, fix))
        return None


def _model_checks(
    plan: TrainingPlan, model: ModelFacts, problems: list[PlanError], warnings: list[str]
) -> None:
    found = model.found
    if found.family != plan.base.family:
        problems.append(
            PlanError(
                f"{plan.base.model} is of the {found.family} family, the plan is for "
                f"{plan.base.family}.",
                "Take another base model or another preset.",
            )
        )
        return
    layers = target_layers(plan.adapter, model)
    if plan.adapter.unet and not layers:
        problems.append(
            PlanError(
                f"No layer of {plan.base.model} fits adapter.targets.",
                'Use "attention+feed-forward", or names such as "to_q".',
            )
        )
    elif plan.adapter.unet:
        name, width = narrowest(layers)
        if plan.adapter.rank > width:
            problems.append(
                PlanError(
                    f"A rank of {plan.adapter.rank} is more than the layer {name} has ({width}).",
                    f"Set adapter.rank to {width} or less.",
                )
            )
    if plan.adapter.text_encoders and model.text_widths:
        width = min(w[0] for w in model.text_widths)
        if plan.adapter.text_encoder_rank > width:
            problems.append(
                PlanError(
                    f"A text encoder rank of {plan.adapter.text_encoder_rank} is more than the "
                    f"narrower text encoder has ({width}).",
                    f"Set adapter.text_encoder_rank to {width} or less.",
                )
            )
    native, side = round(found.native_pixels**0.5), plan.data.resolution
    if not 0.5 <= side / native <= 1.25:
        warnings.append(
            f"The model draws about {native} x {native} pixels, the plan trains at {side} x {side}."
        )


def _word_checks(plan: TrainingPlan, model: ModelFacts, data: DataSet, warnings: list[str]) -> None:
    """What CLIP's vocabulary makes of the trigger and of the captions."""
    from onmodel.models import clip_tokenizer

    tokenizer = clip_tokenizer.make("!")
    trigger = plan.data.trigger
    if len(tokenizer.tokenize(trigger)) == 1:
        warnings.append(
            f"“{trigger}” is one token of the model's vocabulary, so it already means something: "
            "an invented word learns faster and hurts nothing else."
        )
    for picture in data.pictures:
        length = len(tokenizer.tokenize(picture.caption))
        if length > model.tokens:
            warnings.append(
                f"The caption of {picture.name} has {length} tokens; the model reads the first "
                f"{model.tokens}."
            )


def _free_disk(out: Path | None) -> int:
    """Bytes free where `out` is, or will be."""
    place = (out or Path.cwd()).expanduser().absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _room_checks(
    needs: Estimate,
    free: int,
    device: Device,
    problems: list[PlanError],
    warnings: list[str],
) -> None:
    if needs.disk + gib // 4 > free:
        problems.append(
            PlanError(
                f"The run writes up to {readable(needs.disk)}, but {readable(free)} are free.",
                "Free some disk, set run.keep (checkpoints that stay), or write elsewhere.",
            )
        )
    if needs.memory > device.memory:
        warnings.append(
            f"The run needs about {readable(needs.memory)} of memory, and {readable(device.memory)}"
            " are free; gradient_checkpointing, a smaller batch or resolution save most."
        )
