# SPDX-License-Identifier: GPL-3.0-or-later
"""`onmodel rehearsal …`: train the embedded model.

pack SAMPLES    samples of `python -m world.samples` into shards
train           the denoiser
vae SAMPLES     the autoencoder
sheet           truth beside drawings of held-out people
judge SAMPLES   the network and the rules that look at drawings
export          fp16 safetensors in diffusers' layout
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import sys
from pathlib import Path

import torch

log = logging.getLogger(__name__)


def _folder() -> Path:
    return Path.home() / ".cache" / "onmodel" / "rehearsal"


def _pack(options: argparse.Namespace) -> int:
    from onmodel.rehearsal import data
    from onmodel.rehearsal.latents import PatchBasis

    options.folder.mkdir(parents=True, exist_ok=True)
    path = options.folder / "basis.pt"
    if not path.exists():
        basis = PatchBasis()
        basis.fit(data.pictures(options.samples, data.sample_numbers(options.samples)[:700]))
        basis.save(path)
    data.pack(options.samples, options.folder / "shards", PatchBasis.load(path))
    return 0


def _train(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.train import from_options

    return from_options(options)


def _vae(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.train_vae import from_options

    return from_options(options)


def _sheet(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.export import sheet_from_options

    return sheet_from_options(options)


def _measure(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.export import measure_from_options

    return measure_from_options(options)


def _judge(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.judge.train import from_options

    return from_options(options)


def _export(options: argparse.Namespace) -> int:
    from onmodel.rehearsal.export import from_options

    return from_options(options)


def _find_addon() -> bool:
    """Training draws its maps with the add-on's own functions: it runs from a checkout."""
    root = Path(__file__).resolve().parents[3]
    if importlib.util.find_spec("addon") is None and (root / "addon" / "core").is_dir():
        sys.path.append(str(root))
    return importlib.util.find_spec("addon") is not None


def main(argv: list[str]) -> int:
    """Run a subcommand; returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not _find_addon():
        log.error("Training needs the add-on's code beside the server's: run it in a checkout.")
        return 2
    from onmodel.rehearsal import export, train, train_vae
    from onmodel.rehearsal.judge import train as judge_train

    parser = argparse.ArgumentParser(prog="onmodel rehearsal", description=__doc__)
    parser.add_argument("--folder", type=Path, default=_folder(), help="basis, shards, checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    commands = parser.add_subparsers(required=True)
    pack = commands.add_parser("pack", help="samples into shards")
    pack.add_argument("samples", type=Path)
    pack.set_defaults(run=_pack)
    denoiser = commands.add_parser("train", help="train the denoiser")
    train.add_arguments(denoiser)
    denoiser.set_defaults(run=_train)
    vae = commands.add_parser("vae", help="train the autoencoder")
    train_vae.add_arguments(vae)
    vae.set_defaults(run=_vae)
    show = commands.add_parser("sheet", help="draw held-out people")
    show.add_argument("--out", type=Path, required=True)
    show.set_defaults(run=_sheet)
    figures = commands.add_parser("measure", help="figures on held-out people")
    figures.add_argument("--count", type=int, default=24)
    figures.set_defaults(run=_measure)
    judge = commands.add_parser("judge", help="train what measures drawings")
    judge_train.add_arguments(judge)
    judge.set_defaults(run=_judge)
    out = commands.add_parser("export", help="write the weights")
    export.add_arguments(out)
    out.set_defaults(run=_export)
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    return int(options.run(options))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
