# SPDX-License-Identifier: GPL-3.0-or-later
"""A valid job against what this server has: its models, LoRAs and the images that arrived.

What cannot be drawn is refused at submit, with the keyframe named, not found out an hour later.
What can is pinned: the request that is queued names the exact weights, steps and guidance.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onmodel.api import schemas
from onmodel.api.errors import ApiError
from onmodel.jobs import images
from onmodel.jobs.blobs import BlobStore
from onmodel.jobs.queue import NewJob, NewKeyframe


def new_job(job: schemas.JobRequest, told: dict[str, Any], blobs: BlobStore) -> NewJob:
    """The job as the queue takes it. told: what the worker said it has (models, loras,
    ip_adapters).

    Raises ApiError 422 or 409 with a sentence.
    """
    models = {m["name"]: m for m in told["models"]}
    loras = {lora["name"]: lora["hash"] for lora in told.get("loras", [])}
    check_blobs(job, blobs)
    keyframes = []
    for keyframe in job.keyframes:
        where = f"Shot {keyframe.shot}, frame {keyframe.frame}"
        model = check_model(keyframe, models, where)
        check_holds(keyframe, model["name"], told.get("ip_adapters"), where)
        check_images(keyframe, blobs, where)
        keyframes.append(pin(keyframe, model, loras, where))
    data = job.model_dump(mode="json")
    return NewJob(job.client_key, schemas.digest(data), job.title, job.priority, keyframes)


def check_blobs(job: schemas.JobRequest, blobs: BlobStore) -> None:
    """Every image is here. The hashes of the others are in the error, as "missing"."""
    wanted = set().union(*(k.blobs() for k in job.keyframes))
    missing = sorted(h for h in wanted if not blobs.has(h, touch=True))
    if missing:
        raise ApiError(
            422,
            "missing_blobs",
            f"{len(missing)} of the job's images have not been sent.",
            "Ask /v1/blobs/missing, send those, and submit again.",
            missing=missing,
        )


def check_model(
    keyframe: schemas.KeyframeRequest, models: dict[str, dict[str, Any]], where: str
) -> dict[str, Any]:
    """The ModelInfo that the keyframe asks for, once it is sure that it fits."""
    model = models.get(keyframe.model)
    if model is None:
        known = ", ".join(sorted(models)) or "none"
        raise ApiError(
            422,
            "unknown_model",
            f"{where}: this server has no model “{keyframe.model}”.",
            f"Choose one of its models: {known}.",
        )
    if keyframe.model_hash not in (None, model["hash"]):
        raise ApiError(
            409,
            "model_changed",
            f"{where}: the weights of “{keyframe.model}” are not those the request is pinned to.",
            "Put the former weights back, or draw a new take with the present ones.",
        )
    step = int(model["multiple"])
    if keyframe.canvas.width % step or keyframe.canvas.height % step:
        raise ApiError(
            422,
            "wrong_canvas",
            f"{where}: a canvas of {keyframe.canvas.width} x {keyframe.canvas.height} does not "
            f"suit “{keyframe.model}”.",
            f"Its sides must be multiples of {step}.",
        )
    kinds = {m.kind for m in keyframe.maps} - set(model["map_kinds"])
    if kinds:
        raise ApiError(
            422,
            "unknown_map",
            f"{where}: “{keyframe.model}” cannot use {', '.join(sorted(kinds))} maps.",
            f"It knows: {', '.join(model['map_kinds'])}.",
        )
    preset = keyframe.sampling.preset
    if preset != "default" and preset not in model["presets"]:
        raise ApiError(
            422,
            "unknown_preset",
            f"{where}: “{keyframe.model}” has no preset “{preset}”.",
            f"Choose one of: {', '.join(model['presets'])}.",
        )
    return model


def check_holds(
    keyframe: schemas.KeyframeRequest,
    model: str,
    adapters: list[dict[str, Any]] | None,
    where: str,
) -> None:
    """Characters that ask for a weight to be held by their portraits can be.

    Those that leave it to the server are drawn without where they cannot, and portraits of weight 0
    are for scores. adapters: None where the worker's word is of an older version and has none.
    """
    why = "" if adapters is None else why_unheld(adapters, model)
    asking = [c.name for c in keyframe.characters if c.references and c.reference_weight]
    if why and asking:
        raise ApiError(
            422,
            "no_ip_adapter",
            f"{where}: the portraits of “{asking[0]}” cannot hold it: {why}.",
            "Switch its Hold off to draw (Cast > Portraits), or put an IP-Adapter that fits the "
            "model into the ip-adapter folder of Onmodel's data on the server (docs/models.md).",
        )


def why_unheld(adapters: list[dict[str, Any]], model: str) -> str:
    """Why no character of a model's drawings can be held by its portraits, "" where they can.

    adapters: the artist's `ip_adapters`. The rule is `onmodel.models.ip_adapter_file.choose`.
    """
    taken = next((a for a in adapters if model in a["chosen"]), None)
    if taken is not None:
        return _unusable(taken) if taken["problem"] else ""
    if any(model in a["fits"] for a in adapters):
        return "the one that ONMODEL_IP_ADAPTER names on the server is not there or does not fit"
    broken = next((a for a in adapters if a["problem"]), None)
    if broken is not None:
        return _unusable(broken)
    return f"no IP-Adapter here fits “{model}”" if adapters else "there is no IP-Adapter here"


def _unusable(adapter: dict[str, Any]) -> str:
    return f"the IP-Adapter “{adapter['name']}” cannot be used. {adapter['problem'].rstrip('.')}"


def expected_images(keyframe: schemas.KeyframeRequest) -> Iterator[tuple[str, str]]:
    """What must be a PNG of canvas size: what it is, for people, and its hash."""
    for m in keyframe.maps:
        yield f"the {m.kind} map", m.blob
    for c in keyframe.characters:
        yield f"the mask of {c.name}", c.mask
        if c.head and c.head.mask:
            yield f"the head mask of {c.name}", c.head.mask


def check_images(keyframe: schemas.KeyframeRequest, blobs: BlobStore, where: str) -> None:
    """Maps and masks are 8-bit PNGs of canvas size, by their headers."""
    canvas = keyframe.canvas
    for what, sha256 in expected_images(keyframe):
        head = blobs.head(sha256, 64)
        header = images.read_header(head) if head.startswith(images.png_magic) else None
        if header is None or header.bits != 8:
            raise ApiError(
                422, "bad_image", f"{where}: {what} is not an 8-bit PNG.", "Capture the shot again."
            )
        if (header.width, header.height) != (canvas.width, canvas.height):
            raise ApiError(
                422,
                "bad_image",
                f"{where}: {what} is {header.width} x {header.height} pixels, "
                f"but the canvas is {canvas.width} x {canvas.height}.",
                "Capture the shot again.",
            )


def pin(
    keyframe: schemas.KeyframeRequest, model: dict[str, Any], loras: dict[str, str], where: str
) -> NewKeyframe:
    """The request with the hashes of the weights it names, the steps and the guidance that it left
    to the model, and the key of its drawing.

    A LoRA the worker does not know stays unpinned; such a request is drawn (or refused by the
    artist) for itself and its drawing is never taken for another's.
    """
    data = keyframe.model_dump(mode="json")
    data["model_hash"] = model["hash"]
    data["sampling"] = pinned_sampling(keyframe.sampling, model, where)
    pinned = True
    for lora in [*data["loras"], *(x for c in data["characters"] for x in c["loras"])]:
        present = loras.get(lora["name"])
        if lora["hash"] is not None and present is not None and lora["hash"] != present:
            raise ApiError(
                409,
                "lora_changed",
                f"{where}: the LoRA “{lora['name']}” is not the file the request is pinned to.",
                "Put the former file back, or draw a new take with the present one.",
            )
        lora["hash"] = lora["hash"] or present
        pinned = pinned and lora["hash"] is not None
    return NewKeyframe(data, schemas.digest(data) if pinned else "", keyframe.blobs())


def pinned_sampling(
    asked: schemas.Sampling, model: dict[str, Any], where: str
) -> dict[str, str | int | float]:
    """How the model is to denoise, with nothing left to its own settings, which may change before
    the request's turn comes. method: see `onmodel.models.sampling`."""
    if "sampling" not in model:
        # A worker of an older version left this word; the present one is about to leave its own.
        message = f"{where}: the server is still looking at “{model['name']}”."
        raise ApiError(503, "not_ready", message, "Try again in a moment.")
    name = model["default_preset"] if asked.preset == "default" else asked.preset
    usual = model["sampling"][name]
    if asked.method not in (None, usual["method"]):
        raise ApiError(
            409,
            "model_changed",
            f"{where}: the settings of “{model['name']}” are not those the request is pinned to.",
            "Put its former settings back, or draw again to use the present ones.",
        )
    return {
        "preset": name,
        "steps": usual["steps"] if asked.steps is None else asked.steps,
        "guidance": usual["guidance"] if asked.guidance is None else asked.guidance,
        "method": usual["method"],
    }
