"""The word among other people's nodes: encoders that fail, clones of one CLIP, many prompts; and what is told."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from comfy_execution.utils import CurrentNodeContext
from e4t_pack.nodes.host.learning.result_store import STORE
from e4t_pack.nodes.host.prompt import drawn_elsewhere
from e4t_pack.nodes.host.prompt.encoded_prompt import MARK
from e4t_pack.nodes.host.prompt.recognition import recognize
from e4t_pack.nodes.host.sampling import refinement
from oracle import Row, ksample, simple
from oracle_world import World, constant, domain_word, make_parts, with_encoder
from personalized import draw, encode
from prompt_packs import with_signs

REFINEMENT = "e4t_pack.nodes.host.sampling.refinement"


@pytest.fixture(scope="module")
def parts(base, domain):
    return make_parts(base, domain)


@pytest.fixture
def shown(monkeypatch):
    """What the sampler node shows."""
    texts = []
    monkeypatch.setattr(refinement, "show_text", texts.append)
    monkeypatch.setattr(drawn_elsewhere, "show_text", texts.append)
    return texts


def encoder_of(clip):
    return f"{clip.cond_stage_model.clip}.encode_token_weights"


def patched(clip, change):
    """A clone of a CLIP whose encode method is ``change(original, tokens)``."""
    clip = clip.clone()
    original = clip.patcher.get_model_object(encoder_of(clip))
    clip.patcher.add_object_patch(encoder_of(clip), lambda tokens: change(original, tokens))
    return clip


def refined(tensor, words, marks=()):
    """What conditioning becomes with word embeddings ``(B, D)`` by trigger."""
    recipe = recognize(tensor, marks, STORE.prompts)
    fresh = {}
    for prompt in recipe.prompts():
        mine = {key: words[trigger] for key, trigger in prompt.concepts.items()}
        latents = recipe.latents_of(prompt, next(iter(mine.values())).shape[0])
        some = prompt.encode({key: value[latents] for key, value in mine.items()}, ())
        fresh[prompt] = some.new_zeros((next(iter(mine.values())).shape[0], *some.shape[1:]))
        fresh[prompt][latents] = some
    return recipe.rebuild(fresh)


# Errors -----------------------------------------------------------------------------------------------------------


def test_an_error_while_refining_leaves_the_fixed_word_and_is_said_once(run, shown, caplog):
    model, clip, _, _ = run()
    calls = []

    def once(original, tokens):
        calls.append(tokens)
        if len(calls) > 2:  # both prompts have been encoded
            raise ValueError("expected 3, got 2")
        return original(tokens)

    with caplog.at_level(logging.INFO, REFINEMENT):
        picture = draw(model, patched(clip, once), steps=3)
    assert torch.isfinite(picture).all()
    assert len(calls) == 3, "a prompt that failed is not tried again"
    assert len(shown) == 1
    assert "S* in 1 of 2 prompts, but not refined in 1: encoding it again failed (ValueError)" in shown[0]
    assert caplog.text.count("expected 3, got 2") == 1 or "expected 3, got 2" in caplog.text
    stock = model.clone()
    stock.remove_wrappers_with_key(refinement_key(), "e4t")
    calls.clear()
    assert torch.equal(picture, draw(stock, patched(clip, once), steps=3))


def refinement_key():
    from comfy.patcher_extension import WrappersMP

    return WrappersMP.CALC_COND_BATCH


def test_an_encoder_that_gives_something_else_each_time_is_not_called_refined(run, shown):
    model, clip, _, _ = run()
    given = []

    def louder(original, tokens):
        given.append(1)
        cond, pooled = original(tokens)[:2]
        return cond * (1 + len(given)), pooled

    draw(model, patched(clip, louder))
    assert "S* in 1 of 2 prompts, but not refined in 1: another node's text encoder cannot be run again" in shown[0]


def test_tokens_reach_a_patched_encoder_with_all_their_fields_one_prompt_at_a_time(run):
    model, clip, _, _ = run()
    seen = []

    def watched(original, tokens):
        seen.append(tokens)
        return original([[item[:2] for item in section] for section in tokens])

    clip = patched(clip, watched)
    tokens = clip.tokenize("a photo of S*", return_word_ids=True)
    positive = clip.encode_from_tokens_scheduled(tokens)
    ksample(model, {"positive": positive, "negative": encode(clip, "blurry")}, batch=2, steps=1)
    again = [given for given in seen if len(given[0][0]) == 3]
    assert len(again) == 4  # encoded, encoded again as it was, and for each of the two latents
    for given in again:
        assert len(given) == 1
        assert [item[1:] for item in given[0]] == [item[1:] for item in tokens["l"][0]]


# One CLIP, several views ------------------------------------------------------------------------------------------


def test_each_prompt_is_encoded_again_with_what_its_own_clone_had(base, parts, embeddings):
    """A patched clone for the positive prompt and another one for the negative, both with the word."""

    def conds(encode):
        return {"positive": encode("a photo of {S}"), "negative": encode("a bad {S}")}

    class Two(World):
        def _encode(self, clip, text, words):
            factor = 1.5 if "photo" in text else 0.5

            def scaled(original, tokens):
                cond, pooled = original(tokens)[:2]
                return cond * factor, pooled

            return super()._encode(patched(clip, scaled), text, words)

    changed = with_encoder({"S": parts["S"]}, constant, domain_word)
    world = Two(base, changed, Row("two clones", conds), embeddings)
    features = torch.zeros((1, changed["S"].concept.predictor.encoder.feature_width))
    ours = world.ours()
    assert torch.equal(ours, world.stock({"S": changed["S"].concept.predictor.word(features)[0]}))
    # And the CLIP is as it was for everybody else.
    loaded = base[1].encode_from_tokens(base[1].tokenize("a room"))
    assert torch.equal(loaded, base[1].clone().encode_from_tokens(base[1].tokenize("a room")))


# Many prompts -----------------------------------------------------------------------------------------------------


def test_a_long_prompt_is_recognized_after_another_pack_s_prompts_of_other_lengths(run):
    _, clip, _, _ = run()
    with_signs(clip, "a (room:-1)")
    plain = clip.encode_from_tokens(clip.tokenize("word " * 90 + "S*"))
    other = with_signs(clip, "a photo of S*")[0][0]
    for tensor in (plain, other, torch.cat([other, plain], dim=1)):
        recipe = recognize(tensor, (), STORE.prompts)
        assert recipe.complete and recipe.prompts()


def test_a_batch_of_more_prompts_than_are_kept_idle_is_as_each_of_them_alone(run, monkeypatch):
    _, clip, _, _ = run()
    monkeypatch.setattr(STORE.prompts, "_limit", 4)
    texts = [f"a photo of S* number {n}" for n in range(12)]
    alone = [clip.encode_from_tokens(clip.tokenize(text)) for text in texts]
    word = torch.randn((1, 768), generator=torch.Generator().manual_seed(1)) * 0.02
    # As prompt travel does it: no dictionary of the CLIP's is kept, and the single tensors are gone.
    together = refined(torch.cat(alone), {"S*": word.expand(12, -1)})
    for number in (0, 1, 6, 11):
        assert torch.equal(together[number : number + 1], refined(alone[number], {"S*": word}))


def test_what_others_do_with_a_prompt_s_tensor_does_not_change_what_is_remembered(run):
    _, clip, _, _ = run()
    cond = clip.encode_from_tokens_scheduled(clip.tokenize("a photo of S*"))[0]
    before = cond[0].clone()
    cond[0].mul_(3)
    (prompt,) = cond[1][MARK]
    assert torch.equal(prompt.static, before)
    assert recognize(cond[0], [prompt], STORE.prompts).prompts() == [prompt]


def test_a_conditioning_is_copied_and_saved_without_its_text_encoder(run, tmp_path):
    model, clip, _, _ = run()
    positive, negative = encode(clip, "a photo of S*"), encode(clip, "blurry")
    copied = copy.deepcopy(positive)
    assert copied[0][1]["additional_models"][0] is positive[0][1]["additional_models"][0]
    picture = ksample(model, {"positive": positive, "negative": negative})
    assert torch.equal(ksample(model, {"positive": copied, "negative": negative}), picture)
    torch.save(positive, tmp_path / "conditioning.pt")
    assert (tmp_path / "conditioning.pt").stat().st_size < 2**20
    loaded = torch.load(tmp_path / "conditioning.pt", weights_only=False)
    assert torch.equal(ksample(model, {"positive": loaded, "negative": negative}), picture), "content is enough"


@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_a_token_that_another_pack_scaled_is_followed_with_its_factor(run, factor):
    _, clip, _, _ = run()
    tokens = clip.tokenize("a photo of S*")
    tokens["l"][0] = [(t * factor if torch.is_tensor(t) else t, w) for t, w in tokens["l"][0]]
    (prompt,) = clip.encode_from_tokens_scheduled(tokens)[0][1][MARK]
    word = 0.02 * torch.randn((1, 768))
    again = prompt.encode(dict.fromkeys(prompt.concepts, word), ())
    tokens["l"][0] = [(word[0] * factor if torch.is_tensor(t) else t, w) for t, w in tokens["l"][0]]
    assert torch.allclose(again, clip.encode_from_tokens(tokens), atol=1e-5)


# What is told -----------------------------------------------------------------------------------------------------


def test_only_in_the_negative_prompt_is_said(run, shown):
    model, clip, _, _ = run()
    conds = simple("a room", "S*")(lambda text: encode(clip, text))
    ksample(model, conds)
    assert shown == ["S* in 1 of 2 prompts, only in the negative prompt"]


def test_another_case_of_the_trigger_is_said(run, shown):
    model, clip, _, _ = run()
    draw(model, clip, "a photo of s*")
    assert "S* was found in none of 2 prompts (found 's*', the trigger is 'S*')" in shown[0]


def test_a_loader_s_model_under_a_prompt_with_the_word_is_said_once_in_each_run(run, base, shown, caplog):
    model, clip, _, _ = run()
    with CurrentNodeContext("run 1", "sampler"):
        draw(model, clip)
    assert not any("does not know it" in text for text in shown)
    shown.clear()
    conds = {"positive": encode(clip, "a photo of S*"), "negative": encode(clip, "a bad S*")}
    for number in (2, 3):
        with CurrentNodeContext(f"run {number}", "sampler"), caplog.at_level(logging.WARNING):
            ksample(base[0], conds)
    expected = "S* is in the prompt, but this MODEL does not know it: wire the MODEL output of the node that learned it"
    assert [expected in text for text in shown] == [True, True]
    shown.clear()
    with CurrentNodeContext("run 4", "sampler"):
        draw(base[0], clip, "a room")
    assert not shown


def test_a_prompt_of_unknown_making_is_not_called_a_prompt_without_the_word(run, shown):
    model, clip, _, _ = run()
    tensor = clip.encode_from_tokens(clip.tokenize("a photo of S*"))
    ksample(model, {"positive": [[tensor.flip(1), {}]], "negative": encode(clip, "blurry")})
    assert "none of" not in shown[0]
    assert "1 of them came from a node whose changes cannot be followed" in shown[0]
