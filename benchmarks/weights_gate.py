"""``python -m benchmarks.weights_gate``: do autoencoder and judges keep their gates with the weights that are shipped?

The training commands measure the same before the weights are rounded to 8 or 16 bits. Judges are asked about held-out
pictures as drawn and as the autoencoder gives them back; what is gated and why is told in ``miniworld/judge_gate.py``.
The pictures are kept in runs/judges.
"""

from __future__ import annotations

import argparse

from miniworld import judge_gate
from miniworld.models import load_judges, load_vae
from miniworld.train_autoencoder import GATE_DB
from miniworld.train_autoencoder import gate as decibels

from . import host
from .report import gate


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    vae = load_vae()
    met = [gate("autoencoder, dB on held-out pictures", decibels(vae), least=GATE_DB)]
    pictures = judge_gate.gate_pictures(host.ROOT / "runs" / "judges", vae)
    for name, judge in load_judges().items():
        figures = judge_gate.measure(judge, pictures)
        for question, limit in judge_gate.LIMITS.items():
            met.append(gate(f"{name}, {question.partition(' (')[0]}", figures.pop(question), least=limit))
        print("         listed apart: " + ", ".join(f"{question} {value:.3f}" for question, value in figures.items()))
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
