"""``python -m miniworld.train WHAT``: every model of the mini world, seeded, resumable, with its gate.

WHAT, in the order in which they need each other: vae, text, backbone, judge-a, judge-b, base, faces, cats. Checkpoints, loss logs and sample
sheets go to ``runs/WHAT``; finished weights, with what the gate measured, to ``miniworld/weights``. An interrupted command goes
on where it stopped; a finished one goes on if ``--steps`` is raised.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from . import judge_gate, train_autoencoder, train_backbone, train_base, train_judges, train_text_encoder
from .dataset import Pictures
from .judge import ARCHITECTURES
from .judge_pairs import Twins
from .models import channels_last, load_text, load_vae, weights_path
from .training import Schedule
from .weights import save_weights

log = logging.getLogger(__name__)
STOPPED = 130
RUNS = Path(__file__).parent.parent / "runs"
PICTURES = 16384
TWIN_GROUPS = 10240  # of four pictures each
JUDGES = {"judge-a": (14000, 1.5e-3), "judge-b": (9000, 1e-3)}  # steps, learning rate


def _pictures() -> Pictures:
    return Pictures(RUNS / "data", PICTURES)


def _ship(name: str, model: nn.Module, step: int, gate: dict[str, float], eight_bit: bool = True) -> None:
    path = weights_path(name)
    save_weights(path, model.state_dict(), {"gate": json.dumps(gate), "step": str(step)}, eight_bit)
    log.info("%s: %s, written to %s (%.1f MB)", name, gate, path, path.stat().st_size / 1e6)


def train_vae(options: argparse.Namespace) -> None:
    schedule = Schedule(options.steps or 1500, learning_rate=2e-3, weight_decay=0.0, decay=0.4)
    decoder = Schedule(500, learning_rate=1e-3, weight_decay=0.0, decay=0.7)
    model = train_autoencoder.train(RUNS / "vae", _pictures(), schedule, decoder, 16, options.seed)
    gate = {"held-out PSNR dB (at least 30)": round(train_autoencoder.gate(model), 2)}
    _ship("vae", model, schedule.steps, gate, eight_bit=False)  # 8 bits would cost it more than one dB


def train_text(options: argparse.Namespace) -> None:
    schedule = Schedule(options.steps or 1500, learning_rate=1e-3, decay=0.5)
    model = train_text_encoder.train(RUNS / "text", schedule, 48, options.seed)
    right = train_text_encoder.evaluate(model)
    _ship("text", model.encoder, schedule.steps, {"attributes read out (at least 0.98)": round(right, 4)})


def train_image_backbone(options: argparse.Namespace) -> None:
    schedule = Schedule(options.steps or 4000, learning_rate=1e-3, decay=0.5, betas=(0.9, 0.98))
    pictures, text = _pictures(), load_text()
    model = train_backbone.train(RUNS / "backbone", pictures, text, schedule, 64, options.seed)
    found = train_backbone.gate(model, text)
    _ship("backbone", model.tower, schedule.steps, {"caption found among 64 (at least 0.5)": round(found, 4)})


def train_base_model(options: argparse.Namespace) -> None:
    schedule = Schedule(options.steps or 5000, learning_rate=8e-4, warmup=200, ema=0.999)
    text, vae = load_text(), load_vae()
    model = train_base.train(RUNS / "base", _pictures(), text, vae, schedule, 32, options.seed)
    _ship("base", model, schedule.steps, {})


def train_domain(options: argparse.Namespace) -> None:
    """``python -m commands.pretrain`` with the domain's config; its narrow weights are shipped."""
    from commands.pretrain.run.training import Stopped, Training

    from .domains import config_of

    overrides = [f"training.seed={options.seed}"] + ([f"training.steps={options.steps}"] if options.steps else [])
    training = Training(config_of(options.what, *overrides))
    try:
        training.run()
    except Stopped as stopped:
        log.warning("%s", stopped)
        sys.exit(STOPPED)
    with training.average.used_by(training.encoder_and_offsets):
        _ship(options.what, training.encoder_and_offsets, training.step, {})


def train_judge(options: argparse.Namespace) -> None:
    steps, rate = JUDGES[options.what]
    schedule = Schedule(options.steps or steps, learning_rate=rate, decay=0.5, weight_decay=0.05)
    vae, folder = channels_last(load_vae()), RUNS / "judges"
    twins = Twins(folder, TWIN_GROUPS, vae)
    # Unlike the other models, two judges of one seed would still agree too much: each has its own.
    seed = options.seed + 100 * list(ARCHITECTURES).index(options.what)
    judge = train_judges.train(RUNS / options.what, options.what, _pictures(), twins, schedule, 64, seed)
    figures = judge_gate.measure(judge, judge_gate.gate_pictures(folder, vae))
    if judge_gate.met(figures):
        _ship(options.what, judge, schedule.steps, figures)
    else:  # a judge that misreads would make every figure that it prints a wrong one
        log.warning("%s is NOT shipped, because it misses its gate: %s; raise --steps", options.what, figures)


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "vae": train_vae,
    "text": train_text,
    "backbone": train_image_backbone,
    "judge-a": train_judge,
    "judge-b": train_judge,
    "base": train_base_model,
    "faces": train_domain,
    "cats": train_domain,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="train", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=COMMANDS)
    parser.add_argument("--steps", type=int, help="optimizer steps in all (default: the model's own)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    torch.set_num_threads(options.threads)
    try:
        COMMANDS[options.what](options)
    except KeyboardInterrupt:
        log.warning("Stopped: the same command goes on from the last checkpoint.")
        sys.exit(STOPPED)


if __name__ == "__main__":
    main()
