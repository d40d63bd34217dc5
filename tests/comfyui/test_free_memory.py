"""What outlives a run is in one object, and ComfyUI's "Free model and node cache" empties it."""

from __future__ import annotations

import gc
import weakref

import comfy.model_management
import execution
import pytest
import torch
from e4t_pack.nodes.host.learning.content_key import BASES, WeightHashes
from e4t_pack.nodes.host.learning.free_memory import free_with_node_cache
from e4t_pack.nodes.host.learning.result_store import STORE
from personalized import draw
from world import make_base


@pytest.fixture
def executor(monkeypatch):
    """ComfyUI's executor of jobs, whose ``reset`` is what its worker calls for ``POST /free``."""
    # The original comes back after the test.
    monkeypatch.setattr(execution.PromptExecutor, "reset", execution.PromptExecutor.reset)
    made = execution.PromptExecutor(None, execution.CacheType.RAM_PRESSURE, {"ram": 4.0, "ram_inactive": 4.0})
    free_with_node_cache(STORE)
    return made


def alive(references) -> list[str]:
    comfy.model_management.unload_all_models()
    gc.collect()
    return [name for name, reference in references.items() if reference() is not None]


def test_nothing_of_a_concept_its_photo_its_prompts_and_its_encoders_stays(run, executor):
    base = make_base()
    image = torch.rand((1, 80, 64, 3))
    model, clip, parts, _ = run(*base, image=image)
    draw(model, clip)
    references = {
        "concept": weakref.ref(parts),
        "encoder": weakref.ref(parts.predictor.encoder),
        "static embedding": weakref.ref(parts.embedding[0]),
        "text encoder": weakref.ref(base[1].cond_stage_model),
        "UNet": weakref.ref(base[0].model.diffusion_model),
        "photo": weakref.ref(image),
    }
    del base, model, clip, parts, image
    assert {"encoder", "text encoder"} <= set(alive(references)), "the store kept nothing, so this proves nothing"
    executor.reset()
    assert alive(references) == []


def test_what_was_freed_is_learned_again(run, executor):
    run()
    run()
    assert run.tunings == 1 and len(STORE) == 1 and STORE.size() > 0
    executor.reset()
    assert len(STORE) == 0 and len(STORE.prompts) == 0
    run()
    assert run.tunings == 2


def test_fingerprints_of_bases_are_remembered_up_to_a_bound():
    hashes = WeightHashes()
    made = [hashes.base_fingerprint(str(number), {"w": torch.full((1,), float(number))}) for number in range(BASES + 5)]
    assert len(hashes._bases) == BASES
    assert hashes.base_fingerprint(str(BASES + 4), {}) == made[-1], "the last one is not computed again"
