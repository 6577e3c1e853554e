# SPDX-License-Identifier: GPL-3.0-or-later
"""The artist: draws batches of keyframes for the queue. Torch is imported when it first draws."""

from __future__ import annotations

import dataclasses
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onmodel.generate import casting, references, regional_settings
from onmodel.generate.references import Portraits
from onmodel.generate.regional_settings import RegionalSettings
from onmodel.jobs.artist import BlobReader, Cancelled, DrawError, Drawn, Report, Task
from onmodel.models.errors import ModelError
from onmodel.models.ip_adapter_file import AdapterEntry
from onmodel.models.registry import LoraEntry, ModelEntry, Registry

if TYPE_CHECKING:
    from onmodel.faces.face_pass import Canvas
    from onmodel.faces.record import HeadScorer
    from onmodel.generate.preparing import Job, Watcher
    from onmodel.generate.sampler import Settings
    from onmodel.models.family import Family
    from onmodel.models.loras import LoraShelf
    from onmodel.models.memory import Place

log = logging.getLogger(__name__)


@dataclass
class _Loaded:
    """The model that is warm."""

    key: tuple[str, str]
    family: Family
    shelf: LoraShelf
    adapter: AdapterEntry | None = None


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
        weights = memory.weight_bytes(entry)
        if references.wanted(request):
            adapter = references.adapter_of(self.registry, entry)
            weights += 0 if isinstance(adapter, ModelError) else adapter.bytes
        return memory.batch_limit(self._choose_place(weights), pixels, weights)

    def draw(
        self, tasks: list[Task], blobs: BlobReader, report: Report, cancelled: Cancelled
    ) -> Iterator[tuple[str, Drawn]]:
        """Draw tasks of one batch key. Raises DrawError; see `onmodel.jobs.artist`."""
        from onmodel.generate import preparing, sampler

        started = time.perf_counter()
        wanted = [t for t in tasks if not cancelled(t.id)]
        if not wanted:
            return
        request = wanted[0].request
        try:
            entry = self.registry.find(request["model"], request.get("model_hash"))
            regional = self._regional or regional_settings.from_environment()
            settings = sampler.settings_of(request, entry)
            scorer = self._scorer_for(entry)
            loras, jobs = preparing.prepare(
                wanted, blobs, self.registry, entry, self._portraits, scorer
            )
            self._load(entry, loras, jobs, report)
            self._hold(jobs, report)
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
        jobs: Sequence[Job],
        settings: Settings,
        record: dict[str, Any],
        ready: float,
        report: Report,
        cancelled: Cancelled,
    ) -> Iterator[tuple[str, Drawn]]:
        """One batch; where memory runs out, its halves, down to single pictures."""
        from onmodel.generate.preparing import Watcher
        from onmodel.generate.sampler import sample
        from onmodel.models import memory

        assert self._loaded is not None
        family = self._loaded.family
        started = time.perf_counter()
        family.clock.take()
        waiting: list[tuple[Job, Canvas, dict[str, Any]]] = []
        finished: set[str] = set()
        whole = True
        watcher = Watcher(jobs, settings, report, cancelled)
        try:
            for row, pixels in sample(family, [j.picture for j in jobs], settings, watcher):
                job = jobs[row]
                timings = {"load": ready, **family.clock.seconds}
                timings["total"] = ready + time.perf_counter() - started
                own = record | {
                    "seed": job.picture.seed,
                    "loras": job.loras,
                    "references": job.sight.record,
                    "batch": len(jobs),
                    "timings": timings,
                }
                canvas = job.canvas(pixels)
                if job.heads.plan.count:
                    waiting.append((job, canvas, own))
                    continue
                result = job.finished(canvas, own)
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
        drawn: list[tuple[Job, Canvas, dict[str, Any]]],
        settings: Settings,
        watcher: Watcher,
    ) -> Iterator[tuple[str, Drawn]]:
        """The face pass over drawn keyframes with heads to repair; each is yielded when through."""
        from onmodel.faces import keyframe_heads
        from onmodel.models import memory

        if not drawn:
            return
        assert self._loaded is not None
        family, adapter = self._loaded.family, self._loaded.adapter
        weights = memory.weight_bytes(family.entry) + (adapter.bytes if adapter else 0)
        known = {job.task.id: (job, own) for job, _, own in drawn}
        canvases = [canvas for _, canvas, _ in drawn]
        try:
            for canvas, seconds in keyframe_heads.repaired(
                family, canvases, settings, weights, watcher.heads
            ):
                job, own = known[canvas.id]
                own["timings"]["faces"] = seconds
                own["timings"]["total"] += seconds
                yield canvas.id, job.finished(canvas, own)
        except ModelError as error:
            raise DrawError(error.message, error.fix) from error

    def _hold(self, jobs: Sequence[Job], report: Report) -> None:
        """Load the IP-Adapter where a character is held by it, let it go where none is."""
        assert self._loaded is not None
        held = {job.task.id: job.sight for job in jobs if any(job.sight.looks)}
        adapter = next((sight.adapter for sight in held.values()), None)
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
        jobs: Sequence[Job],
        report: Report,
    ) -> None:
        """Make the model and the LoRAs active; reports only where something is really loaded.

        Raises DrawError for the tasks whose own LoRA does not fit.
        """
        from onmodel.models import families, memory
        from onmodel.models.loras import LoraShelf

        key = (entry.name, entry.hash)
        if self._loaded is None or self._loaded.key != key:
            for job in jobs:
                report(job.task.id, "loading", {"message": f"Loading {entry.title}"})
            if self._loaded is not None:
                self._loaded.family.unload()
                self._loaded = None
            place = self._choose_place(memory.weight_bytes(entry), fresh=True)
            family = families.load(entry, place)
            self._loaded = _Loaded(key, family, LoraShelf(family))
        shelf = self._loaded.shelf
        wanted = {lora.adapter: lora for lora, weight in loras if weight}
        holders: dict[str, list[str]] = {}
        for job in jobs:
            found = {lora.adapter: lora for bound in job.cast for lora, _ in bound.loras}
            for adapter in {name for bound in job.cast for name, _ in bound.regional}:
                wanted[adapter] = found[adapter]
                holders.setdefault(adapter, []).append(job.task.id)
        for adapter, lora in wanted.items():
            if not shelf.holds(lora):
                for job in jobs:
                    report(job.task.id, "loading", {"message": f"Loading the LoRA {lora.name}"})
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
