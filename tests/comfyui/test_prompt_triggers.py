"""Words in prompts: which text counts as the word, and that it becomes the same tokens as a stock textual inversion."""

from __future__ import annotations

import logging
import unicodedata

import pytest
import torch
from e4t_pack.nodes.host.prompt.concept_clip import TriggerTakenError, with_concept
from e4t_pack.nodes.host.prompt.prompt_memory import PromptMemory
from e4t_pack.nodes.host.prompt.triggers import near_misses, rewrite_triggers
from safetensors.torch import save_file

from e4t_core.trigger import TriggerError, check_trigger

VECTOR = torch.linspace(-0.02, 0.02, 768)


@pytest.fixture
def clip(base):
    return with_concept(base[1], "S*", "one", VECTOR, PromptMemory())


@pytest.fixture
def stock(base, embeddings):
    save_file({"clip_l": VECTOR[None]}, embeddings / "ti.safetensors")
    return base[1]


def flat(clip, text):
    """Tokens as numbers, 'W' for the word, with weights, padding left out."""
    rows = clip.tokenize(text)["l"]
    tokens = [("W" if torch.is_tensor(t) else int(t), round(w, 6)) for row in rows for t, w in row]
    return [token for token in tokens if token[0] not in (49406, 49407)]


@pytest.mark.parametrize(
    "text",
    [
        "a photo of {}",
        "{}",
        "{}, smiling, in a garden",
        "a photo of ({}:1.3) outside",
        "(({})) and (a {} here:0.7)",
        "one {} two {} three",
    ],
)
def test_trigger_and_canonical_name_give_the_tokens_of_a_stock_inversion(clip, stock, text):
    expected = flat(stock, text.format("embedding:ti", "embedding:ti"))
    assert any(token == "W" for token, _ in expected)
    assert flat(clip, text.format("S*", "S*")) == expected
    assert flat(clip, text.format("embedding:e4t/S*", "embedding:e4t/S*")) == expected


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("S*'s hat", "'s hat"),
        ("S*.", "."),
        ("S*!", "!"),
        ("S*-like", "-like"),
        ('"S*" smiles', '"@" smiles'),
        (r"\(S*\) smiles", r"\(@\) smiles"),
        ("cat/S*", "cat/@"),
    ],
)
def test_punctuation_around_the_word_stays(clip, stock, text, plain):
    tokens = flat(clip, text)
    assert [token for token, _ in tokens].count("W") == 1
    before, _, after = plain.rpartition("@") if "@" in plain else ("", "", plain)
    assert [t for t in tokens if t[0] != "W"] == flat(stock, before) + flat(stock, after)


@pytest.mark.parametrize("text", ["XS*", "S*y", "S**", "s*", "a plain prompt"])
def test_only_the_whole_word_counts(clip, text):
    assert "W" not in [token for token, _ in flat(clip, text)]


def test_a_long_prompt_keeps_the_word_in_one_section(clip):
    rows = clip.tokenize("word " * 90 + "S*")["l"]
    assert len(rows) == 2
    assert [sum(torch.is_tensor(token) for token, _ in row) for row in rows] == [0, 1]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a photo of embedding:S*", "a photo of S*"),
        ("(embedding:S*:1.2), smiling", "(S*:1.2), smiling"),
        ("embedding:S*'s hat", "S*'s hat"),
        ("一张S*的照片", "一张 S* 的照片"),
    ],
)
def test_other_ways_to_write_the_word(clip, text, same):
    assert "W" in [token for token, _ in flat(clip, text)]
    assert flat(clip, text) == flat(clip, same)


def test_other_embeddings_stay_as_they_are_also_where_they_hold_the_word(clip):
    for text in ("embedding:my-S*", "embedding:S*y", "(embedding:ti:1.2)"):
        assert rewrite_triggers(text, ["S*"]) == (text, frozenset())
    assert rewrite_triggers("embedding:ti,S*", ["S*"])[0] == "embedding:ti, embedding:e4t/S*"


def test_accents_may_be_composed_or_decomposed(base):
    clip = with_concept(base[1], "José", "one", VECTOR, PromptMemory())
    for form in ("NFC", "NFD"):
        assert "W" in [token for token, _ in flat(clip, unicodedata.normalize(form, "a photo of José, smiling"))]


def test_a_file_whose_name_goes_on_behind_a_word_is_the_file(base, stock_folder):
    clip = with_concept(base[1], "my", "one", VECTOR, PromptMemory())
    stock_folder.mkdir()
    save_file({"clip_l": VECTOR[None] + 1}, stock_folder / "my-cat.safetensors")
    (row,) = clip.tokenize("embedding:e4t/my-cat")["l"]
    assert torch.equal(row[1][0].cpu(), VECTOR + 1)
    (row,) = clip.tokenize("embedding:e4t/my-dog")["l"]
    assert torch.equal(row[1][0].cpu(), VECTOR)


def test_the_longer_of_two_triggers_wins():
    written, found = rewrite_triggers("S*2 and S*", ["S*", "S*2"])
    assert written == "embedding:e4t/S*2 and embedding:e4t/S*"
    assert found == {"S*", "S*2"}


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("embedding:anna-v2", None),
        ("embedding:anna-v2, smiling", None),
        ("(embedding:anna-v2:1.2)", None),
        ("embedding:anna-anna", None),
        ("anna-v2 smiling", None),
        ("a my-anna", None),
        ("embedding:anna", "embedding:e4t/anna"),
        ("anna's hat", " embedding:e4t/anna's hat"),
        ("anna-v3", " embedding:e4t/anna-v3"),
        ("embedding:anna-v3", "embedding:e4t/anna-v3"),
        ("embedding:anna-v2 and anna, smiling", "embedding:anna-v2 and embedding:e4t/anna, smiling"),
        ("embedding:e4t/anna", "embedding:e4t/anna"),
        ("embedding:taken", None),
        ("taken", " embedding:e4t/taken"),
        ("embedding:e4t/taken", "embedding:e4t/taken"),
    ],
)
def test_an_embedding_file_comes_before_a_trigger_outside_the_concepts_folder(text, written):
    files = {"anna-v2", "anna-anna", "my-anna", "taken"}
    assert rewrite_triggers(text, ["anna", "taken"], files.__contains__)[0] == (written or text).strip()


def test_files_are_those_that_the_stock_tokenizer_finds(base, embeddings, stock):
    (embeddings / "deep").mkdir(exist_ok=True)
    save_file({"clip_l": VECTOR[None] + 1}, embeddings / "deep" / "anna-v2.safetensors")
    save_file({"clip_l": VECTOR[None] + 2}, embeddings / "bad-hands-5.safetensors")
    clip = with_concept(
        with_concept(base[1], "anna", "one", VECTOR, PromptMemory()), "bad", "two", VECTOR, PromptMemory()
    )
    for text in ("embedding:anna-v2", "(embedding:bad-hands-5:1.2), embedding:anna-v2", "embedding:deep/anna-v2 x"):
        rows, expected = clip.tokenize(text)["l"], stock.tokenize(text)["l"]
        for item, wanted in zip(rows[0], expected[0], strict=True):
            assert torch.equal(torch.as_tensor(item[0]), torch.as_tensor(wanted[0])) and item[1] == wanted[1]
    assert clip.tokenize("bad-hands-5") == stock.tokenize("bad-hands-5")
    assert "W" in [token for token, _ in flat(clip, "anna-like, bad hands")]


def test_what_differs_only_in_case_is_noticed():
    assert near_misses("a photo of s*, smiling", ["S*"]) == {"S*": "s*"}
    assert near_misses("Anna and annabel", ["anna", "bob"]) == {"anna": "Anna"}
    assert near_misses("S* and s*y", ["S*"]) == {}


def test_a_concept_of_several_vectors_takes_as_many_tokens(base):
    vectors = torch.stack([VECTOR, VECTOR + 1, VECTOR - 1])
    clip = with_concept(base[1], "S*", "one", vectors, PromptMemory())
    (row,) = clip.tokenize("a (S*:1.2)")["l"]
    held = [(token, weight) for token, weight in row if torch.is_tensor(token)]
    assert all(
        torch.equal(token, vector) and weight == 1.2 for (token, weight), vector in zip(held, vectors, strict=True)
    )


@pytest.mark.parametrize(
    "trigger",
    [
        "",
        "S",
        "a b",
        "(S*)",
        "S:1",
        "<S>",
        "S\n*",
        "[S]",
        "S*,",
        None,
        "12",
        "1.2",
        "..",
        "{S}",
        "S|T",
        "embedding",
        "e4t",
    ],
)
def test_a_trigger_that_prompts_would_misread_is_refused_in_one_sentence(trigger):
    with pytest.raises(TriggerError, match="choose a word such as"):
        check_trigger(trigger)


def test_a_second_concept_cannot_take_a_word_that_is_in_use(clip):
    with pytest.raises(TriggerTakenError, match="already stands for another concept"):
        with_concept(clip, "S*", "another", VECTOR, clip.memory)
    both = with_concept(clip, "T*", "another", VECTOR + 1, clip.memory)
    assert [token for token, _ in flat(both, "S* T*")] == ["W", "W"]
    assert "T*" not in clip.concepts


def test_without_the_pack_the_canonical_name_is_ignored_with_a_clear_line(stock, caplog):
    with caplog.at_level(logging.WARNING):
        tokens = flat(stock, "a photo of embedding:e4t/S*")
    assert tokens == flat(stock, "a photo of")
    assert "embedding:e4t/S* does not exist" in caplog.text


def test_clones_keep_the_words_and_their_own_patches(clip):
    clone = clip.clone()
    clone.clip_layer(-2)
    assert type(clone) is type(clip)
    assert flat(clone, "S*") == flat(clip, "S*")
    assert clip.layer_idx is None
