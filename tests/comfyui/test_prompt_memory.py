"""Which prompts are remembered, and which are forgotten."""

from __future__ import annotations

import torch
from e4t_pack.nodes.host.prompt.encoded_prompt import EncodedPrompt
from e4t_pack.nodes.host.prompt.prompt_memory import PromptMemory
from e4t_pack.nodes.host.prompt.recognition import recognize


def prompt(seed, encoder="one"):
    static = torch.randn((1, 77, 16), generator=torch.Generator().manual_seed(seed))
    return EncodedPrompt(static, 1, {f"concept {seed}": "S*"}, None, encoder)


def known(memory, tensor):
    return recognize(tensor, (), memory) is not None


def test_memory_is_bounded_in_prompts_and_in_text_encoders():
    memory = PromptMemory(limit=5, encoders=2)
    for seed in range(10):
        memory.remember(prompt(seed))
    assert len(memory) == 5
    for seed, encoder in ((50, "two"), (51, "three")):
        memory.remember(prompt(seed, encoder=encoder))
    assert not known(memory, prompt(9).static), "the least recently used text encoder's prompts are dropped"


def test_a_prompt_that_is_drawn_with_is_not_forgotten_for_newer_ones():
    kept, memory = prompt(1), PromptMemory(limit=5)
    memory.remember(kept)
    for seed in range(2, 20):
        changing = prompt(seed)
        memory.remember(changing)
        both = recognize(torch.cat([changing.static, kept.static], dim=1), (), memory)
        assert both.prompts() == [changing, kept]
    for seed in range(20, 25):
        memory.remember(prompt(seed))
    assert not known(memory, kept.static)


def test_a_prompt_whose_tensor_somebody_holds_is_never_forgotten():
    memory, first = PromptMemory(limit=5, encoders=1), prompt(1)
    given = first.static.clone()
    memory.remember(first, given)
    for seed in range(2, 100):
        memory.remember(prompt(seed, encoder=f"encoder {seed}"))
    assert known(memory, first.static)
    del given
    memory.remember(prompt(100, encoder="last"))
    assert not known(memory, first.static)


def test_equal_prompts_are_kept_once():
    memory = PromptMemory()
    memory.remember(prompt(1))
    memory.remember(prompt(1))
    assert len(memory) == 1
