# SPDX-License-Identifier: GPL-3.0-or-later
"""Carries out `onmodel report`; its arguments are in onmodel/report/cli.py."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from onmodel.jobs.blobs import BlobError, BlobStore
from onmodel.jobs.folders import DataFolder, default_data_folder
from onmodel.report.before_after import before_after_sheet, pairs_of
from onmodel.report.film import CharacterRow, Keyframe, film_table, keyframe_of, used_takes
from onmodel.report.output import as_data, as_text
from onmodel.report.page import page
from onmodel.report.results import ReportError, find_results, keyframes_of, sheet_of

log = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    """Carry it out; 0, or 1 where there is nothing to report or a file cannot be written."""
    try:
        _report(options)
    except ReportError as error:
        sys.stderr.write(f"onmodel: {error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"onmodel: {error.filename or 'A file'}: {error.strerror or error}.\n")
        return 1
    return 0


def _report(options: argparse.Namespace) -> None:
    if options.heads and not options.before:
        raise ReportError("The sheet of heads needs --before FOLDER as well.")
    if options.before and not (options.heads or options.sheet):
        raise ReportError("--before is for a sheet: name one with --sheet PNG or --heads PNG.")
    if options.shots and not options.sheet:
        raise ReportError("--shots is for the contact sheet: name its file with --sheet PNG.")
    target = options.html or options.folder / "report.html"
    takes, used, table = write_page(options.folder, target, options.takes)
    written = [target]
    if options.sheet:
        wanted = [name.strip() for name in (options.shots or "").split(",") if name.strip()]
        read = map_reader(options.data)
        sheet_of(options.folder, read, wanted, options.before).save(options.sheet)
        written.append(options.sheet)
    if options.heads:
        title = f"{used[0].film}: heads before (left) and after the face pass"
        pairs = pairs_of(keyframes_of(options.before), takes)
        if not pairs:
            raise ReportError(
                f"{options.before} and {options.folder} share no keyframe whose heads the face "
                "pass worked on: draw the same takes with and without it."
            )
        before_after_sheet(title, pairs).save(options.heads)
        written.append(options.heads)
    if options.json:
        data = as_data(table, used) | {"written": [str(path) for path in written]}
        sys.stdout.write(json.dumps(data, indent=1) + "\n")
        return
    sys.stdout.write(as_text(table) + "\n")
    for path in written:
        sys.stdout.write(f"Written: {path}\n")


def write_page(
    folder: Path, target: Path, which: str = "best"
) -> tuple[list[Keyframe], list[Keyframe], list[CharacterRow]]:
    """Writes a folder's page; returns all takes, those that count, and the table of these.

    Raises ReportError where there is no drawn keyframe, OSError where a file cannot be used.
    """
    results = find_results(folder)
    takes = [keyframe_of(png, sidecar) for png, sidecar in results]
    used = used_takes(takes, which)
    table = film_table(used)
    prompts: dict[str, str] = {}
    for _, sidecar in results:
        request = sidecar["request"]
        prompts.setdefault(str(request["shot"]), str(request.get("prompt", "")))
    target.write_text(page(used[0].film, table, used, prompts), encoding="utf-8")
    return takes, used, table


class _Maps:
    """Maps out of a server's data folder; a map that is gone is left out of the sheet."""

    def __init__(self, data: Path | None) -> None:
        folder = DataFolder(data or default_data_folder()).blobs
        self._store = BlobStore(folder) if folder.is_dir() else None

    def __call__(self, sha256: str) -> bytes | None:
        if self._store is None:
            return None
        try:
            return self._store.read(sha256)
        except BlobError as error:
            log.warning("A map is missing on the sheet: %s", error)
            return None


def map_reader(data: Path | None) -> _Maps:
    """Reads a map's PNG by its hash from a data folder (None: the person's own)."""
    return _Maps(data)
