# SPDX-License-Identifier: GPL-3.0-or-later
"""From the plan's pictures to batches on the device, through the caches."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
from PIL import Image

from onmodel.train import losses
from onmodel.train.buckets import Fit, Order, Showing
from onmodel.train.cache import Cache, key_of
from onmodel.train.dataset import MapFile, Picture
from onmodel.train.family import Batch, Sample, Text, TrainedFamily
from onmodel.train.pictures import open_map, open_mask, open_picture
from onmodel.train.plan import PlanError, TrainingPlan
from onmodel.train.rng import seed_of

T = TypeVar("T")
memory_limit = 2 << 30
"""Bytes of encoded pictures and captions that stay in memory."""


class Samples:
    """Encoded pictures and captions. encoded: pictures, maps and captions that were not cached."""

    def __init__(
        self,
        plan: TrainingPlan,
        pictures: Sequence[Picture],
        order: Order,
        family: TrainedFamily,
        cache: Cache,
    ) -> None:
        if plan.data.flip and plan.data.conditioning:
            raise PlanError(
                "Mirrored pictures do not fit their maps: left and right have colours of their "
                "own in pose maps, and normals point the other way.",
                "Set data.flip or data.conditioning to false.",
            )
        self.plan, self.pictures, self.order = plan, pictures, order
        self.family, self.cache = family, cache
        self.encoded = 0
        self._samples: _Kept[Sample] = _Kept(_bytes_of_sample)
        self._texts: _Kept[Text] = _Kept(lambda t: sum(x.nbytes for x in t.values()))
        self._picture_hash = family.part_hash("vae")
        self._text_hash = family.part_hash(*_text_parts)
        self._map_hash = "" if not plan.data.conditioning else key_of(_control_hash(family))
        captions = [p.caption for p in pictures]
        family.pad_text_to(max(family.chunks(c) for c in captions))
        self._chunks = max(family.chunks(c) for c in captions)

    def fill(self, report: Callable[[int, int], None], cancelled: Callable[[], bool]) -> bool:
        """Encode all that the plan caches and that is not there. False where it was cancelled."""
        showings: list[Showing] = []
        if self.plan.run.cache_latents:
            flips = (False, True) if self.plan.data.flip else (False,)
            showings = [Showing(i, f) for i in range(len(self.pictures)) for f in flips]
        captions: list[str] = []
        if self.caches_text:
            captions = list(dict.fromkeys([*(p.caption for p in self.pictures), ""]))
        total = len(showings) + len(captions)
        for done, showing in enumerate(showings):
            if cancelled():
                return False
            self.sample(showing)
            report(done + 1, total)
        for done, caption in enumerate(captions, len(showings)):
            if cancelled():
                return False
            self.text([caption])
            report(done + 1, total)
        if showings and (captions or self.family.trains_text):
            self.family.rest_encoders()
        return True

    @property
    def caches_text(self) -> bool:
        """Whether text is cached: never where it changes from step to step."""
        changing = self.plan.data.shuffle_caption or self.family.trains_text
        return self.plan.run.cache_text and not changing

    def batch(self, showings: Sequence[Showing], step: int, part: int) -> Batch:
        """A batch on the device. step, part: what chance in captions depends on."""
        samples = [self.sample(s) for s in showings]
        captions = [self.caption(s, f"{step}/{part}/{place}") for place, s in enumerate(showings)]
        device = self.family.place.device
        masks = None
        if any(s.mask is not None for s in samples):
            whole = torch.ones(1, *samples[0].latents.shape[-2:])
            masks = torch.stack([whole if s.mask is None else s.mask for s in samples]).to(device)
        return Batch(
            latents=torch.stack([s.latents for s in samples]).to(device),
            masks=masks,
            maps=[s.maps for s in samples],
            text=self.text(captions),
            size=self.order.fits[showings[0].index].bucket,
        )

    def caption(self, showing: Showing, chance: str) -> str:
        """The caption as this showing has it: shuffled or dropped as the plan says."""
        data = self.plan.data
        caption = self.pictures[showing.index].caption
        rng = random.Random(seed_of(self.plan.run.seed, "caption", chance))
        if data.caption_dropout and rng.random() < data.caption_dropout:
            return ""
        if data.shuffle_caption:
            parts = [p.strip() for p in caption.split(",") if p.strip()]
            rest = parts[data.keep_tokens :]
            rng.shuffle(rest)
            caption = ", ".join([*parts[: data.keep_tokens], *rest])
        return caption

    def text(self, captions: Sequence[str]) -> Text:
        """Tensors (B, …) on the device."""
        if not self.caches_text:
            return self.family.encode_text(captions)
        rows = [self._cached_text(c) for c in captions]
        device = self.family.place.device
        return {name: torch.stack([r[name] for r in rows]).to(device) for name in rows[0]}

    def _cached_text(self, caption: str) -> Text:
        kept = self._texts.get(caption)
        if kept is None:
            key = key_of(self._text_hash, self._chunks, caption)
            kept = self.cache.get("text", key)
            if kept is None:
                self.encoded += 1
                kept = {n: t[0].cpu() for n, t in self.family.encode_text([caption]).items()}
                self.cache.put("text", key, kept)
            self._texts.put(caption, kept)
        return kept

    def sample(self, showing: Showing) -> Sample:
        """A picture's latents, mask and maps, on the CPU or, for maps, where they were made."""
        if not self.plan.run.cache_latents:
            return self._encode(showing, None)
        kept = self._samples.get(showing)
        if kept is None:
            kept = self._encode(showing, self.cache)
            self._samples.put(showing, kept)
        return kept

    def _encode(self, showing: Showing, cache: Cache | None) -> Sample:
        picture, fit = self.pictures[showing.index], self.order.fits[showing.index]
        place = (fit.bucket, fit.resized, fit.crop, showing.flipped)

        def latents() -> torch.Tensor:
            image, _ = open_picture(picture.path)
            x = pixels(fit.apply(image, Image.Resampling.LANCZOS), showing.flipped)
            return self.family.encode_pictures(x[None] * 2.0 - 1.0)[0]

        key = key_of(self._picture_hash, picture.digest, place)
        found = self._through(cache, "latents", key, latents)
        size = (int(found.shape[-2]), int(found.shape[-1]))
        maps = {m.kind: self._map(m, fit, place, cache) for m in picture.maps}
        return Sample(found, self._mask(picture, fit, showing.flipped, size), maps)

    def _through(
        self, cache: Cache | None, kind: str, key: str, make: Callable[[], torch.Tensor]
    ) -> torch.Tensor:
        stored = None if cache is None else cache.get(kind, key)
        if stored is not None:
            return stored["x"]
        self.encoded += 1
        made = make()
        if cache is not None:
            cache.put(kind, key, {"x": made})
        return made

    def _map(self, drawn: MapFile, fit: Fit, place: object, cache: Cache | None) -> torch.Tensor:
        def features() -> torch.Tensor:
            # Nearest neighbours would tear a map's lines, Lanczos would ring around them.
            image = fit.apply(open_map(drawn.path), Image.Resampling.BILINEAR)
            return self.family.encode_map(drawn.kind, pixels(image, False)).cpu()

        key = key_of(self._map_hash, drawn.kind, drawn.digest, place, self.plan.base.dtype)
        return self._through(cache, "maps", key, features)

    def _mask(
        self, picture: Picture, fit: Fit, flipped: bool, size: tuple[int, int]
    ) -> torch.Tensor | None:
        loss = self.plan.loss
        if not loss.masked or picture.mask is None:
            return None
        image = fit.apply(open_mask(picture.mask), Image.Resampling.BILINEAR)
        mask = losses.latent_mask(pixels(image, flipped)[0], size, loss.background)
        if not bool(mask.sum() > 0):
            raise PlanError(
                f"Nothing is left of the mask of {picture.name} within its crop.",
                "Frame the character nearer to the middle, or take the picture out.",
            )
        return mask


_text_parts = ("text_encoder", "text_encoder_2")


def _control_hash(family: TrainedFamily) -> str:
    from onmodel.models import safe

    path = family.entry.controlnet
    if path is None:
        return ""
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    return safe.fingerprint(files, path if path.is_dir() else path.parent)


def pixels(image: Image.Image, flipped: bool) -> torch.Tensor:
    """(C, H, W) float32 0..1."""
    array = np.asarray(image, dtype=np.float32) / 255.0
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array[..., ::-1] if flipped else array))


def _bytes_of_sample(sample: Sample) -> int:
    tensors = [sample.latents, *sample.maps.values()]
    return sum(t.nbytes for t in tensors)


class _Kept(Generic[T]):
    """What was used last, as far as the memory for it reaches."""

    def __init__(self, size_of: Callable[[T], int]) -> None:
        self._size_of = size_of
        self._items: OrderedDict[object, T] = OrderedDict()
        self._bytes = 0

    def get(self, key: object) -> T | None:
        found = self._items.get(key)
        if found is not None:
            self._items.move_to_end(key)
        return found

    def put(self, key: object, item: T) -> None:
        self._items[key] = item
        self._bytes += self._size_of(item)
        while self._bytes > memory_limit and len(self._items) > 1:
            _, gone = self._items.popitem(last=False)
            self._bytes -= self._size_of(gone)
