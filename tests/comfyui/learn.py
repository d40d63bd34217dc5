"""``python learn.py``: learns the test photo in a process of its own and prints a hash of everything that was learned."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401 - sets up ComfyUI in this process
from e4t_pack.nodes.host.learning.request import LoadedDomain
from e4t_pack.nodes.host.networks.base_model import ComfyUNet
from e4t_pack.nodes.personalize import Personalize
from world import LOOKING, chosen, make_base, make_domain, photo

from e4t_core.fingerprint import fingerprint
from e4t_core.weight_changes import full_differences


def learned(concept) -> str:
    """Of a concept: its own fingerprint tells what went in, this one what came out."""
    tensors = {f"difference {name}": stored.value() for name, stored in full_differences(concept.weights).items()}
    tensors |= {f"encoder {name}": value for name, value in concept.predictor.encoder.state_dict().items()}
    return fingerprint(tensors | {"static": concept.embedding[0]}, concept.fingerprint)


def main() -> None:
    model, clip, vae = make_base()
    domain = make_domain(ComfyUNet(model))
    concept = Personalize.execute(model, clip, vae, LoadedDomain(domain), photo(), "S*", 1, None, chosen(LOOKING)).args[
        2
    ]
    print(learned(concept))


if __name__ == "__main__":
    main()
