# SPDX-License-Identifier: GPL-3.0-or-later
"""The artist: draws batches of keyframes for the queue. Torch is imported when it first draws."""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onmodel.generate import casting, references, regional_settings
from onmodel.generate.casting import Bound
from onmodel.generate.errors import RequestProblem
from onmodel.generate.references import Portraits, Sight
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.jobs.artist import BlobReader, Cancelled, DrawError, Drawn, Report, Task
from onmodel.models.errors import ModelError
from onmodel.models.ip_adapter_file import AdapterEntry
from onmodel.models.registry import LoraEntry, ModelEntry, Registry

if TYPE_CHECKING:
    from onmodel.faces.face_pass import Canvas
    from onmodel.faces.keyframe import HeadPlan
    from onmodel.faces.record import HeadScorer, HeadScores
    from onmodel.generate.sampler import Settings
    from onmodel.models.family import Family, Picture
    from onmodel.models.loras import LoraShelf
    from onmodel.models.memory import Place

log = logging.getLogger(__name__)

steps_limit = 200


@dataclass
class _Loaded:
    """The model that is warm."""

    key: tuple[str, str]
    family: Family
    shelf: LoraShelf
    adapter: AdapterEntry | None = None


@dataclass(frozen=True)
class _Job:
    """A task made ready to draw. loras, references: as the record has them. plan: of its heads."""

    task: Task
    picture: Picture
    loras: list[dict[str, Any]]
    references: list[dict[str, Any]]
    plan: HeadPlan
    scores: HeadScores


class Artist:
    """Draws with the models of a registry; keeps one model and its LoRAs warm.

    Used by one thread. registry: None looks into the data folder (see models/registry.py).
    regional: how characters' LoRAs are bound to their regions; None asks the environment.
    scorer: who scores heads; None: the one that fits the model (`onmodel.faces.scores`).
    """

    def __init__(
        self,
        registry: Registry | None = None,
        regional: RegionalSettings | None = None,
        scorer: HeadScorer | None = None,
    ) -> None:
        self.registry = registry or Registry()
        self._regional = regional
        self._scorer = scorer
        self._scorers: dict[bool, HeadScorer] = {}
        self._portraits = Portraits()
        self._loaded: _Loaded | None = None
        self._place: Place | None = None

    def models(self) -> list[dict[str, Any]]:
        """ModelInfo of all models found now; without torch."""
        return [entry.info() for entry in self.registry.models()]

    def loras(self) -> list[dict[str, Any]]:
        """LoRAs found now; without torch."""
        return [entry.info() for entry in self.registry.loras()]

    def ip_adapters(self) -> list[dict[str, Any]]:
        """IP-Adapters found now; without torch."""
        return references.adapters_info(self.registry)

    def device(self) -> str:
        """The device's name, for people. Asked once, while nobody waits: imports are done here."""
        from onmodel.models import libraries

        libraries.warm()
        return self._choose_place(0).title

    def release(self) -> None:
        """Let go of the warm model and its device memory."""
        if self._loaded is not None:
            self._loaded.family.unload()
            self._loaded = None

    def batch_key(self, request: dict[str, Any]) -> str:
        """Equal for requests that differ only in prompts, seeds, images, and characters with
        their heads and LoRAs. Those with characters to be held by portraits take more memory."""
        canvas = request["canvas"]
        maps = sorted(
            (m["kind"], m.get("weight", 1.0), m.get("start", 0.0), m.get("end", 1.0))
            for m in request.get("maps", [])
        )
        return json.dumps(
            {
                "model": [request["model"], request.get("model_hash")],
                "canvas": [canvas["width"], canvas["height"]],
                "sampling": request.get("sampling", {}),
                "loras": casting.whole_mentions(request),
                "maps": maps,
                "face_pass": request.get("face_pass"),
                "references": references.wanted(request),
            },
            sort_keys=True,
        )

    def max_batch(self, request: dict[str, Any]) -> int:
        """By free memory and, on a CPU, by what a batch gains."""
        from onmodel.models import memory

        try:
            entry = self.registry.find(request["model"])
        except ModelError:
            return 1
        pixels = int(request["canvas"]["width"]) * int(request["canvas"]["height"])
        weights = weight_bytes(entry)
        if references.wanted(request):
            adapter = references.adapter_of(self.registry, entry)
            weights += 0 if isinstance(adapter, ModelError) else adapter.bytes
        return memory.batch_limit(self._choose_place(weights), pixels, weights)

    def draw(
        self, tasks: list[Task], blobs: BlobReader, report: Report, cancelled: Cancelled
    ) -> Iterator[tuple[str, Drawn]]:
        """Draw tasks of one batch key. Raises DrawError; see `onmodel.jobs.artist`."""
        started = time.perf_counter()
        wanted = [t for t in tasks if not cancelled(t.id)]
        if not wanted:
            return
        request = wanted[0].request
        try:
            entry = self.registry.find(request["model"], request.get("model_hash"))
            regional = self._regional or regional_settings.from_environment()
            settings = sampling_settings(request, entry)
            find = functools.cache(self.registry.find_lora)
            loras = casting.whole(request, find)
            casts = [_cast(task, find) for task in wanted]
            scorer = self._scorer_for(entry)
            sights = self._sights(wanted, entry, blobs)
            jobs = [
                _prepare(task, blobs, entry, loras, cast, scorer, sight)
                for task, cast, sight in zip(wanted, casts, sights, strict=True)
            ]
            self._load(entry, loras, casts, wanted, report)
            self._hold(wanted, sights, report)
        except ModelError as error:
            raise DrawError(error.message, error.fix) from error
        regional = self._fitting_way(regional)
        settings = dataclasses.replace(settings, regional=regional)
        record = {
            "model": entry.name,
            "model_hash": entry.hash,
            "preset": settings.preset,
            "steps": settings.steps,
            "guidance": settings.guidance,
            "regional": regional.way,
            "device": self._choose_place(0).title,
        }
        ready = time.perf_counter() - started
        yield from self._draw_jobs(jobs, settings, record, ready, report, cancelled)

    def _draw_jobs(
        self,
        jobs: Sequence[_Job],
        settings: Settings,
        record: dict[str, Any],
        ready: float,
        report: Report,
        cancelled: Cancelled,
    ) -> Iterator[tuple[str, Drawn]]:
        """One batch; where memory runs out, its halves, down to single pictures."""
        from onmodel.faces.face_pass import Canvas
        from onmodel.generate.sampler import sample
        from onmodel.models import memory

        assert self._loaded is not None
        family = self._loaded.family
        started = time.perf_counter()
        family.clock.take()
        waiting: list[tuple[_Job, Canvas, dict[str, Any]]] = []
        finished: set[str] = set()
        whole = True
        watcher = _Watcher(jobs, settings, report, cancelled)
        try:
            for row, pixels in sample(family, [j.picture for j in jobs], settings, watcher):
                job = jobs[row]
                timings = {"load": ready, **family.clock.seconds}
                timings["total"] = ready + time.perf_counter() - started
                own = record | {
                    "seed": job.picture.seed,
                    "loras": job.loras,
                    "references": job.references,
                    "batch": len(jobs),
                    "timings": timings,
                }
                canvas = Canvas(job.task.id, job.picture, job.plan, pixels, job.scores.judge)
                if job.plan.count:
                    waiting.append((job, canvas, own))
                    continue
                result = _finish(job, canvas, own)
                finished.add(job.task.id)
                yield job.task.id, result
        except ModelError as error:
            raise DrawError(error.message, error.fix) from error
        except (RuntimeError, MemoryError) as error:
            if not memory.out_of_memory(error):
                raise
            log.warning("Out of memory with %d pictures at once: %s", len(jobs), error)
            memory.free_cache(family.place)
            whole = False
        yield from self._repair_heads(waiting, settings, watcher)
        if whole:
            return
        finished |= {job.task.id for job, _, _ in waiting}
        # Outside the except clause, which would keep the failed batch's tensors alive.
        left = [j for j in jobs if j.task.id not in finished]
        if len(jobs) == 1:
            size = f"{jobs[0].picture.width}x{jobs[0].picture.height}"
            raise DrawError(
                f"There is not enough memory on {family.place.title} to draw {size} pixels with "
                f"“{family.entry.name}”.",
                "Close other programs that use it, choose a smaller model, or take LoRAs out.",
                [jobs[0].task.id],
            )
        half = max(1, len(left) // 2)
        for part in (left[:half], left[half:]):
            if part:
                yield from self._draw_jobs(part, settings, record, ready, report, cancelled)

    def _repair_heads(
        self,
        drawn: list[tuple[_Job, Canvas, dict[str, Any]]],
        settings: Settings,
        watcher: _Watcher,
    ) -> Iterator[tuple[str, Drawn]]:
        """The face pass over drawn keyframes with heads to repair; each is yielded when through."""
        from onmodel.faces import face_pass
        from onmodel.models import memory

        if not drawn:
            return
        assert self._loaded is not None
        family = self._loaded.family
        side = drawn[0][0].plan.side
        weights = weight_bytes(family.entry)
        if self._loaded.adapter is not None:
            weights += self._loaded.adapter.bytes
        limit = memory.batch_limit(family.place, side * side, weights)
        started = time.perf_counter()
        known = {job.task.id: (job, own) for job, _, own in drawn}
        canvases = [canvas for _, canvas, _ in drawn]
        try:
            for canvas in face_pass.run(family, canvases, settings, limit, watcher.heads):
                job, own = known[canvas.id]
                seconds = time.perf_counter() - started
                own["timings"]["faces"] = seconds
                own["timings"]["total"] += seconds
                yield canvas.id, _finish(job, canvas, own)
        except ModelError as error:
            raise DrawError(error.message, error.fix) from error

    def _sights(self, tasks: list[Task], entry: ModelEntry, blobs: BlobReader) -> list[Sight]:
        """How each task's characters are held by their portraits."""
        adapter = None
        if any(references.wanted(task.request) for task in tasks):
            adapter = references.adapter_of(self.registry, entry)
        sights = []
        for task in tasks:
            try:
                sights.append(self._portraits.sight(task.request, blobs, adapter))
            except ModelError as error:
                raise DrawError(error.message, error.fix, [task.id]) from error
        return sights

    def _hold(self, tasks: list[Task], sights: Sequence[Sight], report: Report) -> None:
        """Load the IP-Adapter where a character is held by it, let it go where none is."""
        assert self._loaded is not None
        held = {task.id: s for task, s in zip(tasks, sights, strict=True) if any(s.looks)}
        adapter = next((s.adapter for s in held.values()), None)
        if adapter is not None and self._loaded.adapter != adapter:
            for id in held:
                report(id, "loading", {"message": f"Loading the IP-Adapter {adapter.name}"})
        try:
            self._loaded.family.use_adapter(adapter)
        except ModelError as error:
            raise DrawError(error.message, error.fix, list(held)) from error
        self._loaded.adapter = adapter

    def _scorer_for(self, entry: ModelEntry) -> HeadScorer:
        """Who can tell this model's people apart."""
        from onmodel.faces.calibrations import Calibrations
        from onmodel.faces.scores import Scorer

        if self._scorer is not None:
            return self._scorer
        if entry.embedded not in self._scorers:
            kept = Calibrations(self.registry.data / "calibrations")
            self._scorers[entry.embedded] = Scorer(None, kept, embedded=entry.embedded)
        return self._scorers[entry.embedded]

    def _fitting_way(self, regional: RegionalSettings) -> RegionalSettings:
        """The wanted way, or the reference way where a LoRA's parts have no place in a picture."""
        assert self._loaded is not None
        if regional.way != "fast" or "rows" not in self._loaded.family.regional.kinds:
            return regional
        log.warning(
            "A character's LoRA changes embeddings of the time step, which the fast way cannot "
            "bind to a region: it is drawn with a pass for each character."
        )
        return dataclasses.replace(regional, way="pass")

    def _load(
        self,
        entry: ModelEntry,
        loras: list[tuple[LoraEntry, float]],
        casts: list[list[Bound]],
        tasks: list[Task],
        report: Report,
    ) -> None:
        """Make the model and the LoRAs active; reports only where something is really loaded.

        casts: each task's characters. Raises DrawError for the tasks whose own LoRA does not fit.
        """
        from onmodel.models import families
        from onmodel.models.loras import LoraShelf

        key = (entry.name, entry.hash)
        if self._loaded is None or self._loaded.key != key:
            for task in tasks:
                report(task.id, "loading", {"message": f"Loading {entry.title}"})
            if self._loaded is not None:
                self._loaded.family.unload()
                self._loaded = None
            place = self._choose_place(weight_bytes(entry), fresh=True)
            family = families.load(entry, place)
            self._loaded = _Loaded(key, family, LoraShelf(family))
        shelf = self._loaded.shelf
        wanted = {lora.adapter: lora for lora, weight in loras if weight}
        holders: dict[str, list[str]] = {}
        for task, cast in zip(tasks, casts, strict=True):
            found = {lora.adapter: lora for bound in cast for lora, _ in bound.loras}
            for adapter in {name for bound in cast for name, _ in bound.regional}:
                wanted[adapter] = found[adapter]
                holders.setdefault(adapter, []).append(task.id)
        for adapter, lora in wanted.items():
            if not shelf.holds(lora):
                for task in tasks:
                    report(task.id, "loading", {"message": f"Loading the LoRA {lora.name}"})
            try:
                shelf.load(lora)
            except ModelError as error:
                raise DrawError(error.message, error.fix, holders.get(adapter, ())) from error
        shelf.use(loras, [wanted[adapter] for adapter in holders])

    def _choose_place(self, weights: int, fresh: bool = False) -> Place:
        from onmodel.models import memory

        if self._place is None or fresh:
            self._place = memory.choose_place(weights)
        return self._place


class _Watcher:
    """Between the sampler, which speaks of rows, and the queue, which speaks of tasks.

    The steps of a keyframe are those of its drawing, then those of its heads.
    """

    def __init__(
        self, jobs: Sequence[_Job], settings: Settings, report: Report, cancelled: Cancelled
    ) -> None:
        from onmodel.faces.face_pass import plan_steps

        self._ids = [j.task.id for j in jobs]
        self._more = {j.task.id: plan_steps(j.plan, settings) for j in jobs}
        self._report = report
        self._cancelled = cancelled
        self.heads = _HeadWatcher(settings.steps, self._more, report, cancelled)

    def step(self, row: int, step: int, steps: int) -> None:
        id = self._ids[row]
        self._report(id, "sampling", {"step": step, "steps": steps + self._more[id]})

    def preview(self, row: int, step: int, steps: int, image: Any) -> None:
        from onmodel.generate.pictures import encode_png

        id = self._ids[row]
        data = {"step": step, "steps": steps + self._more[id], "png": encode_png(image)}
        self._report(id, "preview", data)

    def cancelled(self, row: int) -> bool:
        return self._cancelled(self._ids[row])


@dataclass(frozen=True)
class _HeadWatcher:
    """Between the face pass and the queue. drawn: steps of a drawing. heads: of its heads."""

    drawn: int
    heads: dict[str, int]
    report: Report
    ask: Cancelled

    def step(self, id: str, done: int) -> None:
        steps = self.drawn + self.heads[id]
        self.report(id, "sampling", {"step": self.drawn + done, "steps": steps})

    def cancelled(self, id: str) -> bool:
        return self.ask(id)


def _cast(task: Task, find: casting.Find) -> list[Bound]:
    try:
        return casting.characters(task.request, find)
    except ModelError as error:
        raise DrawError(error.message, error.fix, [task.id]) from error


def _prepare(
    task: Task,
    blobs: BlobReader,
    entry: ModelEntry,
    loras: list[tuple[LoraEntry, float]],
    cast: list[Bound],
    scorer: HeadScorer,
    sight: Sight,
) -> _Job:
    from onmodel.faces.keyframe import plan_keyframe
    from onmodel.faces.record import HeadScores
    from onmodel.generate.conditioning import picture

    try:
        bound = [member.regional for member in cast]
        made = picture(task.request, blobs, entry, bound, sight.looks)
        plan = plan_keyframe(task.request, blobs, entry, cast, sight.looks)
    except RequestProblem as error:
        raise DrawError(error.message, error.fix, [task.id]) from error
    scores = HeadScores(task.request, blobs, scorer, plan.settings)
    return _Job(task, made, casting.record(loras, cast), sight.record, plan, scores)


def _finish(job: _Job, canvas: Canvas, record: dict[str, Any]) -> Drawn:
    from onmodel.faces.record import heads_record
    from onmodel.generate.conditioning import crop_box
    from onmodel.generate.pictures import encode_png, request_key

    request, pixels = job.task.request, canvas.pixels
    left, top, right, bottom = crop_box(request["canvas"])
    record = record | {
        "timings": {stage: round(seconds, 4) for stage, seconds in record["timings"].items()},
        "heads": heads_record(job.scores, job.plan, canvas.outcomes, pixels),
        "request_key": request_key(request),
    }
    return Drawn(encode_png(pixels[top:bottom, left:right], record), record)


def sampling_settings(request: dict[str, Any], entry: ModelEntry) -> Settings:
    """How a request's model is to denoise. Raises ModelError for what it cannot do."""
    from onmodel.generate.sampler import Settings
    from onmodel.models import schedulers

    sampling = request.get("sampling") or {}
    name = sampling.get("preset") or "default"
    if name == "default":
        name = entry.default_preset
    preset = schedulers.get(name, entry.found.scheduler)
    steps = sampling.get("steps") or preset.steps or entry.steps
    guidance = sampling.get("guidance")
    if guidance is None:
        guidance = entry.guidance if preset.guidance is None else preset.guidance
    if not 1 <= int(steps) <= steps_limit:
        raise ModelError(f"{steps} steps cannot be drawn.", f"Choose 1 to {steps_limit} steps.")
    return Settings(name, int(steps), float(guidance))


def weight_bytes(entry: ModelEntry) -> int:
    """Bytes of a model's files, its ControlNet's too."""
    paths = list(entry.found.weights)
    if entry.controlnet and entry.controlnet.is_dir():
        paths += [p for p in entry.controlnet.glob("*.safetensors") if p not in paths]
    elif entry.controlnet:
        paths.append(entry.controlnet)
    return sum(p.stat().st_size for p in paths)
