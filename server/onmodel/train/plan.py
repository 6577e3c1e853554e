# SPDX-License-Identifier: GPL-3.0-or-later
"""What a training run shall do: one frozen plan that the command line, jobs and exports share.

A plan is made of nine parts; every part can be built with its defaults, so that a preset states
only what it is about. `check(plan)` says whether the whole can run. Files are read and written by
`plan_file.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

Family = Literal["sdxl", "flux"]
Dtype = Literal["bf16", "fp16", "fp32"]
OptimizerName = Literal["adamw", "adamw8bit", "prodigy", "adafactor"]
SchedulerName = Literal["constant", "linear", "cosine", "polynomial"]

Need = Callable[[bool, str, str], None]
target_groups = ("attention", "attention+feed-forward")


class PlanError(Exception):
    """A plan cannot be used.

    message: a sentence that says what is wrong. fix: a sentence that says what to do.
    """

    def __init__(self, message: str, fix: str = "") -> None:
        super().__init__(f"{message} {fix}".strip())
        self.message = message
        self.fix = fix


@dataclass(frozen=True)
class BasePlan:
    """The model that the LoRA is trained on.

    model: a name of the model registry, a diffusers folder or one .safetensors file.
    dtype: the number format of the frozen weights and of the forward pass; the LoRA's own
    weights, their gradients and the optimizer's state are always float32.
    """

    model: str = ""
    family: Family = "sdxl"
    dtype: Dtype = "bf16"


@dataclass(frozen=True)
class DataPlan:
    """The pictures.

    images: folder with NAME.png and NAME.txt, see dataset.py. regularisation: the same for
    pictures of the noun that are not the character. trigger: the invented word of the
    character; noun: what it is ("woman", "man", "robot"). resolution: side in pixels of the
    square whose area every bucket comes near to. bucket_step: sides of buckets are multiples of
    it. min_bucket, max_bucket: bounds of a bucket's side. upscale: whether a picture smaller
    than its bucket is enlarged (else it gets a smaller bucket). repeats: how often an epoch
    shows each picture (times the number of a `N_name` folder). flip: mirror every other showing
    (wrong for a face with a scar or a parting on one side). masks: read NAME.mask.png or
    masks/NAME.png; white is the character. caption_dropout: probability of an empty caption.
    shuffle_caption: shuffle the comma-separated parts after the first keep_tokens of them.
    conditioning: train through the ControlNet on NAME.pose.png / NAME.depth.png where they lie
    beside the picture.
    """

    images: str = ""
    regularisation: str | None = None
    trigger: str = ""
    noun: str = ""
    resolution: int = 1024
    bucket_step: int = 64
    min_bucket: int = 512
    max_bucket: int = 2048
    upscale: bool = False
    repeats: int = 1
    flip: bool = False
    masks: bool = True
    caption_dropout: float = 0.0
    shuffle_caption: bool = False
    keep_tokens: int = 1
    conditioning: bool = False


@dataclass(frozen=True)
class AdapterPlan:
    """The LoRA: ΔW = (alpha / rank) · B · A in every target layer.

    targets: "attention", "attention+feed-forward", or names of layers as peft's target_modules
    understands them. convolutions: also the 3x3 convolutions of the U-Net (SDXL only).
    """

    rank: int = 32
    alpha: float = 32.0
    unet: bool = True
    text_encoders: bool = False
    text_encoder_rank: int = 16
    dropout: float = 0.0
    targets: str | tuple[str, ...] = "attention+feed-forward"
    convolutions: bool = False


@dataclass(frozen=True)
class OptimizerPlan:
    """rate: of the U-Net or transformer. Prodigy finds its own: leave its rates at 1.0."""

    name: OptimizerName = "adamw"
    rate: float = 1e-4
    text_encoder_rate: float = 1e-5
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = 1.0


@dataclass(frozen=True)
class SchedulePlan:
    """How long, and how the rate moves.

    steps or epochs: one of them. A step is one update of the weights, from batch · accumulate
    pictures. warm_up: steps of rising rate. power: of the polynomial. ema: decay per step of the
    average that is saved and drawn with, None: no average.
    """

    steps: int | None = None
    epochs: int | None = None
    batch: int = 1
    accumulate: int = 1
    scheduler: SchedulerName = "constant"
    warm_up: int = 0
    power: float = 1.0
    ema: float | None = None


@dataclass(frozen=True)
class LossPlan:
    """masked: Σ(l·m)/Σm over a picture's latent. background: the weight m has outside of the
    mask (0: the paper's pure form). prior_weight: factor of a regularisation picture's loss.
    min_snr_gamma: of Min-SNR weighting (arXiv 2303.09556), SDXL only. noise_offset: strength of
    the constant added to each channel's noise, SDXL only.
    """

    masked: bool = True
    background: float = 0.0
    prior_weight: float = 1.0
    min_snr_gamma: float | None = None
    noise_offset: float = 0.0


@dataclass(frozen=True)
class RunPlan:
    """save_every: steps between checkpoints. keep: checkpoints that stay (0: all).

    cache_text: store what the text encoders say; impossible where they are trained or where
    captions change (shuffled). threads: of the CPU, None: torch's own choice.
    """

    seed: int = 0
    gradient_checkpointing: bool = False
    cache_latents: bool = True
    cache_text: bool = True
    save_every: int = 250
    keep: int = 0
    threads: int | None = None


@dataclass(frozen=True)
class ValidationPlan:
    """Drawings while training. every: steps between them (0: none). count: drawings of each
    prompt. references: folder of pictures of the character that identity is measured against,
    None: the training pictures. maps: folder of NAME.pose.png, NAME.depth.png … that the drawings
    follow in turn, see validation.py; None: the maps of training pictures, where the plan trains
    with them. In prompts, {trigger} and {noun} stand for the plan's own, {caption} for the caption
    of the maps that are followed.
    """

    every: int = 0
    prompts: tuple[str, ...] = ()
    count: int = 1
    references: str | None = None
    maps: str | None = None
    steps: int = 20
    guidance: float = 5.0
    seed: int = 1


@dataclass(frozen=True)
class TrainingPlan:
    """The whole plan. name: of the LoRA's files; letters, digits, '-', '_' and '.'."""

    name: str = "lora"
    base: BasePlan = field(default_factory=BasePlan)
    data: DataPlan = field(default_factory=DataPlan)
    adapter: AdapterPlan = field(default_factory=AdapterPlan)
    optimizer: OptimizerPlan = field(default_factory=OptimizerPlan)
    schedule: SchedulePlan = field(default_factory=SchedulePlan)
    loss: LossPlan = field(default_factory=LossPlan)
    run: RunPlan = field(default_factory=RunPlan)
    validation: ValidationPlan = field(default_factory=ValidationPlan)

    @property
    def subject(self) -> str:
        """The words that stand for the character in captions: "TRIGGER NOUN"."""
        return f"{self.data.trigger} {self.data.noun}".strip()

    @property
    def draws_on_maps(self) -> bool:
        """Whether the ControlNet is needed, to train or to draw with."""
        drawn = bool(self.validation.every) and self.validation.maps is not None
        return self.data.conditioning or drawn

    def validation_prompts(self, caption: str = "") -> tuple[str, ...]:
        """The prompts of the validation with trigger, noun and a map's caption put in."""
        words = {"{trigger}": self.data.trigger, "{noun}": self.data.noun, "{caption}": caption}
        found = []
        for prompt in self.validation.prompts:
            for word, meaning in words.items():
                prompt = prompt.replace(word, meaning)
            found.append(prompt.strip().strip(",").strip())
        return tuple(found)


def problems(plan: TrainingPlan, *, complete: bool = True) -> list[PlanError]:
    """Everything that keeps the plan from running, as far as the plan alone tells.

    complete: also ask for what presets leave open (model, images, trigger, noun). What needs the
    pictures, the model or the machine is preflight.py's.
    """
    found: list[PlanError] = []

    def need(holds: bool, message: str, fix: str) -> None:
        if not holds:
            found.append(PlanError(message, fix))

    if complete:
        need(bool(plan.base.model), "The plan names no base model.", "Set base.model.")
        need(bool(plan.data.images), "The plan names no images.", "Set data.images to a folder.")
        need(
            bool(plan.data.trigger.strip()),
            "The plan has no trigger word.",
            "Set data.trigger to an invented word for the character.",
        )
        need(
            bool(plan.data.noun.strip()),
            "The plan does not say what the character is.",
            'Set data.noun to a word such as "woman" or "robot".',
        )
    safe = plan.name and all(c.isalnum() or c in "-_." for c in plan.name)
    need(
        bool(safe) and not plan.name.startswith("."),
        f"“{plan.name}” cannot be the name of the files.",
        "Use letters, digits, '-', '_' and '.' in name, and no '.' at the start.",
    )
    choices(plan, need)
    ranges(plan, need)
    combinations(plan, need)
    return found


def choices(plan: TrainingPlan, need: Need) -> None:
    """Values out of a list."""
    for key, value, allowed in (
        ("base.family", plan.base.family, get_args(Family)),
        ("base.dtype", plan.base.dtype, get_args(Dtype)),
        ("optimizer.name", plan.optimizer.name, get_args(OptimizerName)),
        ("schedule.scheduler", plan.schedule.scheduler, get_args(SchedulerName)),
    ):
        need(value in allowed, f"{key} is “{value}”.", f"It can be {', '.join(allowed)}.")
    targets = plan.adapter.targets
    need(
        targets in target_groups if isinstance(targets, str) else bool(targets),
        f"adapter.targets is “{targets}”.",
        f"It can be {' or '.join(target_groups)}, or a list of names of layers.",
    )


def ranges(plan: TrainingPlan, need: Need) -> None:
    """Numbers and their bounds; an open end is infinity."""
    data, adapter, optimizer = plan.data, plan.adapter, plan.optimizer
    schedule, loss, run, validation = plan.schedule, plan.loss, plan.run, plan.validation
    inf = math.inf
    for key, value, low, high in (
        ("data.resolution", data.resolution, 64, 4096),
        ("data.bucket_step", data.bucket_step, 8, 512),
        ("data.min_bucket", data.min_bucket, 32, 4096),
        ("data.max_bucket", data.max_bucket, 64, 8192),
        ("data.repeats", data.repeats, 1, 10000),
        ("data.caption_dropout", data.caption_dropout, 0, 1),
        ("data.keep_tokens", data.keep_tokens, 0, 100),
        ("adapter.rank", adapter.rank, 1, 1024),
        ("adapter.alpha", adapter.alpha, 1e-6, inf),
        ("adapter.text_encoder_rank", adapter.text_encoder_rank, 1, 1024),
        ("adapter.dropout", adapter.dropout, 0, 0.95),
        ("optimizer.rate", optimizer.rate, 1e-12, 10),
        ("optimizer.text_encoder_rate", optimizer.text_encoder_rate, 0, 10),
        ("optimizer.weight_decay", optimizer.weight_decay, 0, 10),
        ("optimizer.max_grad_norm", optimizer.max_grad_norm, 0, inf),
        ("schedule.steps", schedule.steps, 1, inf),
        ("schedule.epochs", schedule.epochs, 1, inf),
        ("schedule.batch", schedule.batch, 1, 1024),
        ("schedule.accumulate", schedule.accumulate, 1, 1024),
        ("schedule.warm_up", schedule.warm_up, 0, inf),
        ("schedule.power", schedule.power, 1e-6, 100),
        ("schedule.ema", schedule.ema, 0, 0.999999),
        ("loss.background", loss.background, 0, 1),
        ("loss.prior_weight", loss.prior_weight, 0, 100),
        ("loss.min_snr_gamma", loss.min_snr_gamma, 1e-3, 1000),
        ("loss.noise_offset", loss.noise_offset, 0, 1),
        ("run.seed", run.seed, 0, 2**63 - 1),
        ("run.save_every", run.save_every, 1, inf),
        ("run.keep", run.keep, 0, inf),
        ("run.threads", run.threads, 1, 1024),
        ("validation.every", validation.every, 0, inf),
        ("validation.count", validation.count, 1, 1000),
        ("validation.steps", validation.steps, 1, 1000),
        ("validation.guidance", validation.guidance, 0, 100),
        ("validation.seed", validation.seed, 0, 2**63 - 1),
    ):
        if value is None:
            continue
        bound = f"{low:g} or more" if high == inf else f"between {low:g} and {high:g}"
        good = math.isfinite(value) and low <= value <= high
        need(good, f"{key} is {value:g}.", f"It has to be {bound}.")
    need(
        all(0 <= beta < 1 for beta in optimizer.betas),
        f"optimizer.betas are {optimizer.betas}.",
        "Both have to be at least 0 and below 1.",
    )


def combinations(plan: TrainingPlan, need: Need) -> None:
    """Values that exclude each other."""
    data, adapter, schedule, loss = plan.data, plan.adapter, plan.schedule, plan.loss
    need(
        (schedule.steps is None) != (schedule.epochs is None),
        "The plan has both steps and epochs."
        if schedule.steps is not None
        else "The plan has neither steps nor epochs.",
        "Set one of schedule.steps and schedule.epochs; the other one is none.",
    )
    need(
        adapter.unet or adapter.text_encoders,
        "The plan trains nothing.",
        "Set adapter.unet or adapter.text_encoders.",
    )
    need(
        not (plan.run.cache_text and adapter.text_encoders),
        "Text cannot be cached while the text encoders are trained: it changes at every step.",
        "Set run.cache_text or adapter.text_encoders to false.",
    )
    need(
        not (plan.run.cache_text and data.shuffle_caption),
        "Text cannot be cached while captions are shuffled.",
        "Set run.cache_text or data.shuffle_caption to false.",
    )
    need(
        data.masks or not loss.masked,
        "The loss is masked, but the plan reads no masks.",
        "Set data.masks to true or loss.masked to false.",
    )
    need(
        data.min_bucket <= data.resolution <= data.max_bucket,
        f"The resolution {data.resolution} lies outside of the buckets' sides, "
        f"{data.min_bucket} to {data.max_bucket}.",
        "Change data.min_bucket or data.max_bucket.",
    )
    grain = 16 if plan.base.family == "flux" else 8
    need(
        data.bucket_step % grain == 0,
        f"data.bucket_step is {data.bucket_step}, which {plan.base.family} cannot draw.",
        f"It has to be a multiple of {grain}.",
    )
    if plan.base.family == "flux":
        need(
            loss.min_snr_gamma is None and loss.noise_offset == 0,
            "Min-SNR and noise offset belong to noise prediction; Flux learns a flow.",
            "Leave loss.min_snr_gamma out and set loss.noise_offset to 0.",
        )
        need(
            not adapter.convolutions,
            "Flux has no convolutions to adapt.",
            "Set adapter.convolutions to false.",
        )
    if schedule.steps is not None:
        need(
            schedule.warm_up < schedule.steps,
            f"The rate still rises at the last of {schedule.steps} steps.",
            "Make schedule.warm_up smaller.",
        )
    need(
        plan.validation.every == 0 or bool(plan.validation.prompts),
        "The plan asks for validation drawings, but for none in particular.",
        "Set validation.prompts, or validation.every to 0.",
    )


def check(plan: TrainingPlan, *, complete: bool = True) -> TrainingPlan:
    """The plan itself, or a PlanError with the first problem and how many more there are."""
    found = problems(plan, complete=complete)
    if not found:
        return plan
    first, more = found[0], len(found) - 1
    rest = "" if not more else f" ({more} more: {' '.join(e.message for e in found[1:])})"
    raise PlanError(first.message, first.fix + rest)
