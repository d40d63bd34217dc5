"""``python -m benchmarks.plans``: do all memory plans learn the same?

The demo's photo is learned with the mini face domain, in a new process each time, by every memory plan: in float32, and with
a UNet in bfloat16, as graphics cards learn. Compared are noise predictions on 64 fixed probes (see ``determinism``) with
those of the fast plan in float32.

The gate is the one that ``determinism`` has for another order of accumulation, 0.05 of what tuning moved, set before a plan
was measured. A plan differs by what it does NOT change the formulas of: the order of sums (micro-batches), moments that rest
in bfloat16, a UNet that rounds to bfloat16.
"""

from __future__ import annotations

import argparse
import multiprocessing

import torch

from e4t_core.memory_plan import PLANS

from . import host
from .determinism import TOLERANCE, Case, Learned, distance, learn
from .report import gate, table

MICRO_BATCHES = {"fast": 16, "balanced": 8, "lean": 4, "leanest": 2}
UNTUNED = "not tuned"


def learn_in(case: Case, threads: int, bfloat16: bool) -> Learned:
    """Learns in one number type; call it in a new process."""
    compute = host.pack("nodes.host.networks.compute_type")
    # Not what this CPU would do by itself: each number type for certain.
    compute.has_matrix_units = compute.has_vector_instructions = lambda: False
    if bfloat16:
        host.learn_as_a_card_does()
    return learn(case, threads)


def main() -> int:
    """The command; its exit status is 1 if a gate is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    cases = [(Case(UNTUNED, {"steps": 0}), False)]
    for bfloat16 in (False, True):
        for plan, micro_batch in MICRO_BATCHES.items():
            name = f"{plan}, micro-batch {micro_batch}, {'bfloat16' if bfloat16 else 'float32'}"
            cases.append((Case(name, {"memory": PLANS[plan].name, "micro_batch": micro_batch}), bfloat16))
    host.mini_checkpoint(), host.mini_domain()  # made once, not by every process
    found: dict[str, Learned] = {}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for case, bfloat16 in cases:
            found[case.name] = pool.apply(learn_in, (case, options.threads, bfloat16))
            print(f"{case.name}: {found[case.name].seconds:.1f} s", flush=True)
    untuned, reference, *others = (found[case.name] for case, _ in cases)
    moved = distance(reference, untuned)
    names = [case.name for case, _ in cases][2:]
    shares = [distance(other, reference) / moved for other in others]
    print(table(("learned with", "predictions differ, of what tuning moved"), [
        (name, f"{share:.4f}") for name, share in zip(names, shares, strict=True)
    ]))  # fmt: skip
    met = [
        gate(f"{name}: of what tuning moved", share, most=TOLERANCE) for name, share in zip(names, shares, strict=True)
    ]
    return 0 if all(met) else 1


if __name__ == "__main__":
    raise SystemExit(main())
