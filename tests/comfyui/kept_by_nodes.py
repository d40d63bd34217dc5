"""Concepts that are kept and applied by the nodes, in this process and (``python kept_by_nodes.py FOLDER ... NAME ...``) in a new one.

As a program it loads and applies concepts on the small world's base and prints, as JSON, what they are and what they draw.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import conftest  # noqa: F401 - sets up ComfyUI in this process
import torch
from e4t_pack.nodes.apply_concept import ApplyConcept
from e4t_pack.nodes.load_concept import LoadConcept
from e4t_pack.nodes.save_concept import SaveConcept
from personalized import draw
from world import make_base, make_concept

from e4t_core.concept import Concept
from e4t_core.files.concept_tensors import parts_of
from e4t_core.fingerprint import fingerprint
from e4t_core.weight_changes import full_differences, shared_factors


@dataclasses.dataclass(frozen=True)
class Places:
    """Folders of concept files, of their second files, and of domain files."""

    words: Path
    weights: Path
    domains: Path


def save(concept: Concept, name: str, keeps: str = "exact", **options) -> str:
    """By the node; the name it was saved under."""
    return SaveConcept.execute(concept, name, keeps, **options).args[0].removeprefix("embedding:e4t/")


def load(name: str) -> Concept:
    """By the node."""
    return LoadConcept.execute(name).args[0]


def apply(base, concept: Concept, *strengths: float, **options):
    """(MODEL, CLIP, concept) by the node."""
    return ApplyConcept.execute(base[0], base[1], concept, *strengths, **options).args


def said(output) -> str:
    """What a node shows."""
    return "\n".join(output.ui["text"])


def drawn(base, concept: Concept, *strengths: float, **options) -> torch.Tensor:
    """Latent of "a photo of" the concept, applied by the node."""
    model, clip, _ = apply(base, concept, *strengths, **options)
    return draw(model, clip, f"a photo of {options.get('trigger') or concept.trigger}")


def known_concept(domain, seed: int = 0, trigger: str = "S*", **changes) -> Concept:
    """A random concept that knows what word it started from, as a learned one does."""
    made = make_concept(domain, seed, trigger)
    return dataclasses.replace(made, word="face", start=made.predictor.domain_word_embedding, **changes)


def content(concept: Concept) -> str:
    """Hash of all numbers that a concept is."""
    tensors = {f"difference {name}": stored.value() for name, stored in full_differences(concept.weights).items()}
    for name, (p, q) in shared_factors(concept.weights).items():
        tensors |= {f"p {name}": p, f"q {name}": q}
    if concept.attention is not None:
        tensors |= {f"attention {number}": tensor for number, tensor in enumerate(concept.attention.tensors())}
    for number, (part, _) in enumerate(parts_of(concept.predictor)):
        tensors |= {f"encoder {number} {name}": value for name, value in part.encoder.state_dict().items()}
        tensors |= {f"features {number}": part.clip_features, f"word {number}": part.domain_word_embedding}
    return fingerprint({**tensors, "word": concept.embedding}, concept.fingerprint)


def hash_of(latent: torch.Tensor) -> str:
    """Of a latent's bits."""
    return fingerprint({"latent": latent})


def in_a_new_process(places: Places, names: list[str]) -> dict[str, list[str]]:
    """Name -> (content, hash of what is drawn), of concepts loaded and applied in a process of its own."""
    folders = [str(folder) for folder in dataclasses.astuple(places)]
    done = subprocess.run(
        [sys.executable, __file__, *folders, *names], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def use(places: Places) -> None:
    """Make these the only folders of their kinds; for programs."""
    import folder_paths
    from e4t_pack.nodes.host import model_folders

    model_folders.register_folders()
    for kind, folder in (
        ("embeddings", places.words.parent),
        (model_folders.WEIGHTS, places.weights),
        (model_folders.DOMAINS, places.domains),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        folder_paths.folder_names_and_paths[kind] = ([str(folder)], {".safetensors"})
    model_folders.register_folders = lambda: None


def main() -> None:
    words, weights, domains, *names = sys.argv[1:]
    use(Places(Path(words), Path(weights), Path(domains)))
    base, found = make_base(), {}
    with torch.inference_mode():
        for name in names:
            model, clip, concept = apply(base, load(name))
            found[name] = [content(concept), hash_of(draw(model, clip, f"a photo of {concept.trigger}"))]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
