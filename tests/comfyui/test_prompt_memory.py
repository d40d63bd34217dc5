"""Recognising conditioning by content, and what is forgotten."""

from __future__ import annotations

import torch
from e4t_pack.nodes.host.prompt.prompt_memory import EncodedPrompt, PromptMemory


def prompt(seed, word=True, sections=1, encoder="one"):
    static = torch.randn((1, 77 * sections, 16), generator=torch.Generator().manual_seed(seed))
    return EncodedPrompt(static, sections, {f"concept {seed}": "S*"} if word else {}, None, encoder)


def fresh(spoken):
    return torch.randn((1, *spoken.static.shape[1:]), generator=torch.Generator().manual_seed(1000))


def remembered(*prompts):
    memory = PromptMemory()
    for item in prompts:
        memory.remember(item)
    return memory


def test_a_tensor_of_unknown_origin_is_not_recognised():
    spoken = prompt(1)
    memory = remembered(spoken, prompt(2, word=False))
    assert memory.recognise(torch.randn((1, 77, 16))) is None
    assert memory.recognise(spoken.static[:, :50]) is None
    assert memory.recognise(spoken.static + 1e-3 * torch.randn((1, 77, 16))) is None
    assert memory.recognise(torch.randn((1, 77, 8))) is None


def test_a_plain_prompt_and_zeros_hold_no_concept():
    plain = prompt(2, word=False)
    memory = remembered(prompt(1), plain)
    assert memory.recognise(plain.static).prompts() == []
    assert memory.recognise(torch.zeros((1, 77, 16))).prompts() == []


def test_nested_arithmetic_is_followed_up_to_rounding():
    spoken, plain = prompt(1), prompt(2, word=False)
    memory, new = remembered(spoken, plain), fresh(spoken)

    def make(tensor):
        return torch.cat([(tensor * 0.7 + plain.static * (1.0 - 0.7)) * 1.3, plain.static * 0.5], dim=1)

    recipe = memory.recognise(make(spoken.static))
    assert torch.allclose(recipe.rebuild({spoken: new})[:, :77], make(new)[:, :77], atol=1e-5)
    assert torch.equal(recipe.rebuild({spoken: new})[:, 77:], make(new)[:, 77:])


def test_average_of_two_prompts_with_words_follows_both():
    one, two = prompt(1), prompt(2)
    new = {one: fresh(one), two: fresh(two) + 1}
    recipe = remembered(one, two).recognise(one.static * 0.25 + two.static * (1.0 - 0.25))
    assert torch.equal(recipe.rebuild(new), new[one] * 0.25 + new[two] * (1.0 - 0.25))


def test_every_latent_of_a_batch_gets_its_own_context():
    spoken, plain = prompt(1), prompt(2, word=False)
    rows = torch.cat([fresh(spoken), fresh(spoken) + 1])
    rebuilt = remembered(spoken, plain).recognise(torch.cat([plain.static, spoken.static], 1)).rebuild({spoken: rows})
    assert torch.equal(rebuilt, torch.cat([plain.static.expand(2, -1, -1), rows], dim=1))


def test_the_tensor_itself_is_never_changed():
    spoken = prompt(1)
    given = spoken.static.clone()
    remembered(spoken).recognise(given).rebuild({spoken: fresh(spoken)})
    assert torch.equal(given, spoken.static)


def test_a_mark_helps_after_the_memory_has_forgotten():
    spoken = prompt(1)
    assert PromptMemory().recognise(spoken.static, hints=[spoken]).prompts() == [spoken]


def test_memory_is_bounded_in_prompts_and_in_text_encoders():
    memory = PromptMemory(limit=5, encoders=2)
    for seed in range(10):
        memory.remember(prompt(seed))
    assert len(memory) == 5
    for seed, encoder in ((50, "two"), (51, "three")):
        memory.remember(prompt(seed, encoder=encoder))
    assert memory.recognise(prompt(9).static) is None, "the least recently used text encoder's prompts are dropped"


def test_a_prompt_in_use_is_not_forgotten_for_newer_ones():
    kept, memory = prompt(1), PromptMemory(limit=5)
    memory.remember(kept)
    for seed in range(2, 20):
        changing = prompt(seed)
        memory.remember(changing)
        assert memory.recognise(torch.cat([changing.static, kept.static], dim=1)).prompts() == [changing, kept]
    for seed in range(20, 25):
        memory.remember(prompt(seed))
    assert memory.recognise(kept.static) is None


def test_equal_prompts_are_kept_once():
    memory = remembered(prompt(1), prompt(1))
    assert len(memory) == 1
