# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel train --server URL`: a plan as a job of a running server, followed to its end.

The same plan is the same job: the command again follows a training that runs, and has one that was
cancelled or failed go on from its last save.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import requests

from onmodel.train import progress
from onmodel.train.plan import PlanError, TrainingPlan

exit_ok, exit_failed, exit_cancelled = 0, 1, 130
answer_seconds = 300.0
"""Longest wait for an answer: a preflight decodes every picture."""
silent_seconds = 60.0
"""A stream of events that says nothing for so long is broken: it lives every ten seconds."""
attempts = 5
"""How often in a row a lost stream is taken up again, each time after a second more."""


class Server:
    """A running server's addresses of trainings. Raises PlanError with its own sentences."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self.session = requests.Session()
        self.session.headers["Authorization"] = f"Bearer {token}"
        # A proxy of the environment must not see the token, nor stand before this machine.
        self.session.trust_env = False
        self._seen: dict[str, int] = {}

    def ask(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """A call of the API, and its answer."""
        try:
            answer = self.session.request(
                method, f"{self.url}/v1/trainings{path}", json=body, timeout=answer_seconds
            )
            told = answer.json()
        except requests.RequestException as error:
            raise self._gone(error) from error
        if not answer.ok:
            wrong = told.get("error", {"message": f"It answered {answer.status_code}.", "fix": ""})
            raise PlanError(wrong["message"], wrong["fix"])
        return dict(told)

    def events(self, training: str) -> Iterator[dict[str, Any]]:
        """The events of a training that were not given yet, to its last; taken up again where the
        connection is lost."""
        failures = 0
        while True:
            try:
                for event in self._stream(training, self._seen.get(training, 0)):
                    self._seen[training], failures = event["id"], 0
                    yield event
                    if event["type"] == "job_done":
                        return
                failures += 1  # the server ended it: it is being stopped
            except requests.RequestException as error:
                failures += 1
                if failures > attempts:
                    raise self._gone(error) from error
            if failures > attempts:
                raise self._gone(None)
            time.sleep(failures)

    def _stream(self, training: str, after: int) -> Iterator[dict[str, Any]]:
        url = f"{self.url}/v1/trainings/{training}/events"
        wait = (10.0, silent_seconds)
        with self.session.get(url, params={"after": after}, stream=True, timeout=wait) as answer:
            answer.raise_for_status()
            for text in answer.iter_lines():
                if text.startswith(b"data: "):
                    yield json.loads(text[6:])

    def _gone(self, error: Exception | None) -> PlanError:
        reason = f" ({type(error).__name__})" if error is not None else ""
        return PlanError(
            f"The server at {self.url} does not answer{reason}.",
            "A training that it had begun goes on when it is started again; the same command "
            "follows it then.",
        )


def find_server(where: str, token: str | None) -> Server:
    """The server at an address, or of a ready file (`onmodel serve --ready-file`).

    token: None asks ONMODEL_TOKEN. Raises PlanError.
    """
    if "://" in where:
        token = token or os.environ.get("ONMODEL_TOKEN")
        if not token:
            raise PlanError(
                "The server wants a token.",
                "Write --token, or set ONMODEL_TOKEN; it printed its own.",
            )
        return Server(where, token)
    try:
        ready = json.loads(Path(where).read_text("utf-8"))
        return Server(ready["url"], token or ready["token"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PlanError(
            f"{where} is neither an address nor the ready file of a running server: {error}",
            "Write --server http://127.0.0.1:PORT.",
        ) from error


def preflight(server: Server, plan: TrainingPlan, as_json: bool) -> int:
    """What the server would make of the plan; the exit code."""
    report = server.ask("POST", "/preflight", {"plan": dataclasses.asdict(plan)})
    if as_json:
        progress.line({"type": "preflight", **report})
        return exit_ok if report["ok"] else exit_failed
    kept, refused = report["kept"], report["refused"]
    lines = [f"{len(kept)} pictures kept, {len(refused)} refused, {report['steps']} steps"]
    lines += [f"  refused  {row['name']}: {row['reason']}" for row in refused]
    lines += [f"  warning  {sentence}" for sentence in report["warnings"]]
    lines += [f"  problem  {row['message']} {row['fix']}" for row in report["problems"]]
    progress.say("\n".join([*lines, "It can start." if report["ok"] else "It cannot start."]))
    return exit_ok if report["ok"] else exit_failed


def train(server: Server, plan: TrainingPlan, as_json: bool, ask: Callable[[], bool]) -> int:
    """Submit the plan and follow it; the exit code.

    ask: called at Ctrl+C, whether to cancel the training on the server too.
    """
    tables = dataclasses.asdict(plan)
    key = hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
    receipt = server.ask("POST", "", {"client_key": f"train {key}", "plan": tables})
    training, state = receipt["id"], receipt["state"]
    if state in ("cancelled", "failed"):
        server.ask("POST", f"/{training}/retry")
        _tell(
            as_json, "submitted", training, f"It had been {state} and goes on from its last save."
        )
    else:
        _tell(as_json, "submitted", training, f"The server has it as {training[:8]} ({state}).")
    show = progress.events(as_json)
    while True:
        try:
            return _follow(server, training, show)
        except KeyboardInterrupt:
            if not ask():
                _tell(as_json, "left", training, "It goes on; the same command follows it again.")
                return exit_cancelled
            server.ask("POST", f"/{training}/cancel")
            _tell(as_json, "cancelling", training, "It stops after this step, its state saved.")


def _tell(as_json: bool, kind: str, training: str, sentence: str) -> None:
    if as_json:
        progress.line({"type": kind, "training": training, "message": sentence})
    else:
        progress.say(sentence)


def _follow(server: Server, training: str, show: Callable[[str, dict[str, Any]], None]) -> int:
    """To the end of the training; the exit code."""
    code = exit_failed
    for event in server.events(training):
        kind = event["type"]
        told = {k: v for k, v in event.items() if k not in ("id", "type", "keyframe", "time")}
        if kind == "step":
            told["of"] = told.pop("steps")
        elif kind == "chosen":
            told["sentence"] = told.pop("message")
        elif kind == "failed":
            code = exit_failed
        elif kind in ("done", "cancelled"):
            code = exit_ok if kind == "done" else exit_cancelled
        if kind == "job_done":
            break
        show(kind, told)
    return code


def at_the_terminal() -> bool:
    """Asks the person whether to cancel; without one the training goes on."""
    if not sys.stdin.isatty():
        return False
    sys.stderr.write("\nCancel the training on the server? What it saved is kept. [y/N] ")
    sys.stderr.flush()
    try:
        return sys.stdin.readline().strip().lower() in ("y", "yes")
    except KeyboardInterrupt:
        return False
