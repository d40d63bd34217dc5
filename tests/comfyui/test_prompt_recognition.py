"""Recognizing conditioning by content: what it was made of, and the same arithmetic with prompts encoded anew."""

from __future__ import annotations

import pytest
import torch
from e4t_pack.nodes.host.prompt.encoded_prompt import EncodedPrompt
from e4t_pack.nodes.host.prompt.prompt_memory import PromptMemory
from e4t_pack.nodes.host.prompt.recognition import recognize

WIDTH = 128


def prompt(seed, word=True, sections=1, length=77, **more):
    static = torch.randn((1, length * sections, WIDTH), generator=torch.Generator().manual_seed(seed))
    return EncodedPrompt(static, sections, {f"concept {seed}": "S*"} if word else {}, None, "one", **more)


def fresh(spoken, seed=1000):
    """The prompt with another word: most of it stays as it is."""
    return spoken.static + 0.1 * torch.randn(spoken.static.shape, generator=torch.Generator().manual_seed(seed))


def remembered(*prompts):
    memory = PromptMemory()
    for item in prompts:
        memory.remember(item)
    return memory


def close(made, wanted):
    return float((made - wanted).norm()) <= 1e-5 * float(wanted.norm())


def test_a_tensor_of_unknown_origin_is_not_recognized():
    spoken = prompt(1)
    memory = remembered(spoken, prompt(2, word=False))
    assert recognize(torch.randn((1, 77, WIDTH)), (), memory) is None
    assert recognize(torch.randn((1, 77, WIDTH)), [spoken], memory) is None
    assert recognize(spoken.static[:, :50], (), memory) is None
    assert recognize(torch.randn((1, 77, 8)), (), memory) is None
    for changed in (spoken.static.flip(1), spoken.static.square(), spoken.static.roll(1, dims=2)):
        assert recognize(changed, [spoken], memory) is None


def test_many_prompts_do_not_explain_anything_by_chance():
    prompts = [prompt(seed, word=seed % 2 == 0) for seed in range(1, 80)]
    assert recognize(torch.randn((1, 77, WIDTH)), (), remembered(*prompts)) is None


def test_a_plain_prompt_and_zeros_hold_no_concept():
    plain = prompt(2, word=False)
    memory = remembered(prompt(1), plain)
    assert recognize(plain.static, (), memory).prompts() == []
    assert recognize(torch.zeros((1, 77, WIDTH)), (), memory).prompts() == []


def test_nested_arithmetic_is_followed_up_to_rounding():
    spoken, plain = prompt(1), prompt(2, word=False)
    memory, new = remembered(spoken, plain), fresh(spoken)

    def make(tensor):
        return torch.cat([(tensor * 0.7 + plain.static * (1.0 - 0.7)) * 1.3, plain.static * 0.5], dim=1)

    recipe = recognize(make(spoken.static), (), memory)
    assert close(recipe.rebuild({spoken: new})[:, :77], make(new)[:, :77])
    assert torch.equal(recipe.rebuild({spoken: new})[:, 77:], make(new)[:, 77:])


def test_average_of_two_prompts_with_words_follows_both():
    one, two = prompt(1), prompt(2)
    new = {one: fresh(one), two: fresh(two, 1001)}
    recipe = recognize(one.static * 0.25 + two.static * (1.0 - 0.25), (), remembered(one, two))
    assert torch.equal(recipe.rebuild(new), new[one] * 0.25 + new[two] * (1.0 - 0.25))


def test_every_latent_of_a_batch_gets_its_own_context():
    spoken, plain = prompt(1), prompt(2, word=False)
    rows = torch.cat([fresh(spoken), fresh(spoken) + 1])
    recipe = recognize(torch.cat([plain.static, spoken.static], 1), (), remembered(spoken, plain))
    assert torch.equal(recipe.rebuild({spoken: rows}), torch.cat([plain.static.expand(2, -1, -1), rows], dim=1))


def test_the_tensor_itself_is_never_changed():
    spoken = prompt(1)
    given = spoken.static.clone()
    recognize(given, (), remembered(spoken)).rebuild({spoken: fresh(spoken)})
    assert torch.equal(given, spoken.static)


def test_a_mark_helps_after_the_memory_has_forgotten():
    spoken = prompt(1)
    assert recognize(spoken.static, [spoken], PromptMemory()).prompts() == [spoken]


def test_a_mark_comes_before_an_equal_prompt_in_memory():
    mine, other = prompt(1), prompt(1)
    assert recognize(mine.static, [mine], remembered(other)).prompts() == [mine]
    assert recognize(mine.static * 1.5, [mine], remembered(other)).prompts() == [mine]


@pytest.mark.parametrize("first", [77, 154])
def test_chunks_of_every_length_are_tried_whatever_was_encoded_before(first):
    """Some packs' encoders give two rows for each token."""
    double, plain = prompt(1, length=154), prompt(2, sections=2)
    both = [double, plain] if first == 154 else [plain, double]
    memory = remembered(*both)
    for item in (double, plain):
        assert recognize(item.static, (), memory).prompts() == [item]
    mixed = torch.cat([double.static, plain.static * 1.5], dim=1)
    recipe = recognize(mixed, (), memory)
    assert recipe.complete
    assert recipe.prompts() == [double, plain]


def test_rows_of_a_batch_are_as_the_same_prompts_alone():
    one, two, plain = prompt(1), prompt(2), prompt(3, word=False)
    made = [one.static, plain.static, two.static * 0.7 + plain.static * (1 - 0.7), one.static]
    memory = remembered(one, two, plain)
    recipe = recognize(torch.cat(made), (), memory)
    assert recipe.latents_of(one, 8) == [0, 3, 4, 7]
    assert recipe.latents_of(two, 8) == [2, 6]
    same = {one: fresh(one), two: fresh(two)}
    alone = torch.cat([recognize(tensor, (), memory).rebuild(same) for tensor in made])
    assert torch.equal(recipe.rebuild(same), alone)
    each = {one: torch.cat([fresh(one, n) for n in range(8)]), two: torch.cat([fresh(two, n) for n in range(8)])}
    alone = [
        recognize(made[n % 4], (), memory).rebuild({key: value[n : n + 1] for key, value in each.items()})
        for n in range(8)
    ]
    assert torch.equal(recipe.rebuild(each), torch.cat(alone))


def weights(length=77, seed=5):
    """Weights of a prompt's tokens as a person writes them; the first and last token have none."""
    values = torch.tensor([1.0, 1.1, 1.21, 0.7, 1.35, 0.0, 1.331])
    drawn = values[torch.randint(0, 7, (length,), generator=torch.Generator().manual_seed(seed))]
    drawn[0] = drawn[-1] = 1.0
    return drawn[:, None]


def test_weighted_rows_are_followed_to_the_last_bit():
    spoken = prompt(1)
    recipe = recognize(spoken.static * weights(), (), remembered(spoken))
    assert torch.equal(recipe.rebuild({spoken: fresh(spoken)}), fresh(spoken) * weights())


@pytest.mark.parametrize("sections", [1, 3])
@pytest.mark.parametrize("keep", [torch.mean, torch.linalg.norm])
def test_weighted_rows_scaled_back_to_what_they_were(sections, keep):
    spoken = prompt(1, sections=sections)
    weight = torch.cat([weights(seed=5 + n) for n in range(sections)])

    def make(tensor):
        tensor = tensor + 0.2
        weighted = tensor * weight
        return keep(tensor) / keep(weighted) * weighted * 1.25

    static = EncodedPrompt(spoken.static + 0.2, sections, spoken.concepts, None, "one")
    recipe = recognize(make(spoken.static), (), remembered(static))
    assert close(recipe.rebuild({static: fresh(spoken) + 0.2}), make(fresh(spoken)))


def test_rows_mixed_from_several_prompts():
    """Down-weighting by prompts without the token, and up-weighting by the difference to them."""
    base, fewer, fewest = prompt(1), prompt(2), prompt(3, word=False)
    up = weights() - 1

    def make(a, b):
        return 0.5 * a + 0.2 * b + 0.3 * fewest.static + up * (a - b)

    recipe = recognize(make(base.static, fewer.static), (), remembered(base, fewer, fewest, *map(prompt, range(9, 20))))
    new = {base: fresh(base), fewer: fresh(fewer)}
    assert set(recipe.prompts()) == {base, fewer}
    assert close(recipe.rebuild(new), make(new[base], new[fewer]))


def test_rows_that_lean_to_the_empty_prompt():
    spoken, empty = prompt(1), prompt(2, word=False)
    weight = weights()

    def make(row):
        part = (empty.static * row).sum(-1, keepdim=True) / row.norm(dim=-1, keepdim=True) ** 2 * row
        return torch.where(weight > 1, row + weight * part, torch.where(weight < 1, row - (1 - weight) * part, row))

    recipe = recognize(make(spoken.static), (), remembered(spoken, empty))
    assert close(recipe.rebuild({spoken: fresh(spoken)}), make(fresh(spoken)))


@pytest.mark.parametrize("share", [0.25, 0.7])
def test_prompts_mixed_at_an_angle_or_with_their_magnitude(share):
    one, two = prompt(1, sections=2), prompt(2, word=False, sections=2)
    memory = remembered(one, two)
    low = two.static * 1.0

    def slerp(high):
        angle = torch.acos(((low / low.norm()) * (high / high.norm())).sum())
        return (((1 - share) * angle).sin() * low + (share * angle).sin() * high) / angle.sin()

    def magnitude(high):
        mixed = share * high + (1 - share) * low
        return mixed / mixed.norm() * (share * high.norm() + (1 - share) * low.norm())

    new = 1.5 * fresh(one)
    for make in (slerp, magnitude):
        assert close(recognize(make(one.static), (), memory).rebuild({one: new}), make(new))


@pytest.mark.parametrize("amount", [0.05, 0.3])
def test_noise_on_a_marked_prompt_stays_as_it_is(amount):
    spoken = prompt(1)
    noise = torch.randn(spoken.static.shape, generator=torch.Generator().manual_seed(3))

    def make(tensor):
        return tensor * (1 - amount) + noise * amount

    recipe = recognize(make(spoken.static), [spoken], PromptMemory())
    assert close(recipe.rebuild({spoken: fresh(spoken)}), make(fresh(spoken)))
    assert recognize(make(spoken.static), (), remembered(spoken)) is None, "without a mark it could be anything"


@pytest.mark.parametrize("marked", [True, False])
def test_the_second_prompt_of_a_blend_is_found_among_many_that_resemble_the_first(marked):
    spoken, plain = prompt(1), prompt(2, word=False)
    alike = [EncodedPrompt(fresh(spoken, 100 + n), 1, {f"concept {n}": "S*"}, None, "one") for n in range(150)]
    memory = remembered(plain, spoken, *alike)
    made = spoken.static * 0.7 + plain.static * (1.0 - 0.7)
    recipe = recognize(made, [spoken] if marked else [], memory)
    assert torch.equal(recipe.rebuild({spoken: fresh(spoken)}), fresh(spoken) * 0.7 + plain.static * (1.0 - 0.7))


def test_of_two_equal_prompts_the_one_that_can_be_encoded_again_counts():
    def encode(words, company):
        raise AssertionError

    able = EncodedPrompt(prompt(1).static, 1, {"concept 1": "S*"}, encode, "one")
    for order in ([able, prompt(1)], [prompt(1), able]):
        assert recognize(able.static, (), remembered(*order)).prompts() == [able]


def test_a_chunk_without_the_word_does_not_count_as_one_with_it():
    long = prompt(1, sections=2, places=(frozenset(), frozenset({"concept 1"})))
    recipe = recognize(long.static[:, :77], [long], PromptMemory())
    (source,) = recipe.sources()
    assert long.concepts_in(source.chunk) == {}
