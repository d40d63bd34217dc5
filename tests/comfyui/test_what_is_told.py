"""What a person is told: on E4T Personalize, on the sampler node, and in the log."""

from __future__ import annotations

import dataclasses
import json
import logging
import re

import comfy.model_management
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from comfy.patcher_extension import PatcherInjection
from e4t_pack.nodes.host.learning import pictures, progress
from oracle import ksample, latent
from personalized import draw, encode
from world import LOOKING, QUICK, chosen, photo

from e4t_core.methods.e4t import photo_fit


def test_the_first_preview_is_the_crop_and_the_bar_reaches_its_end(run, monkeypatch):
    sent = []
    monkeypatch.setattr(progress.Progress, "_send", lambda self, *arguments: sent.append(arguments))
    run(settings=dataclasses.replace(LOOKING, steps=3))
    assert sent[0][0] == 0 and sent[0][2].size == (256, 256)
    assert sent[-1][0] == sent[-1][1]
    assert any(picture is not None and picture.width == 512 for _, _, picture in sent), "no loss curve was shown"


@pytest.mark.parametrize(
    ("text", "message"),
    [("a photo of S*", "S* in 1 of 2 prompts"), ("a photo", "S* was found in none of 2 prompts")],
)
def test_the_sampler_says_where_the_word_is(run, monkeypatch, caplog, text, message):
    from e4t_pack.nodes.host.sampling import refinement

    shown = []
    monkeypatch.setattr(refinement, "show_text", shown.append)
    model, clip, _, _ = run()
    with caplog.at_level(logging.INFO):
        draw(model, clip, text, steps=3)
    assert len(shown) == 1 and message in shown[0]
    assert message in caplog.text


def test_a_word_averaged_with_another_clip_s_prompt_is_told_as_not_refined(run, base, caplog):
    import nodes

    model, clip, _, _ = run()
    mixed = nodes.ConditioningAverage().addWeighted(encode(clip, "a photo of S*"), encode(base[1], "a dog"), 0.6)[0]
    with caplog.at_level(logging.WARNING):
        ksample(model, {"positive": mixed, "negative": encode(clip, "blurry")})
    assert "S* in 1 of 2 prompts, but not refined in 1" in caplog.text and "none of" not in caplog.text


def test_the_node_says_what_became_of_the_photo_and_forgets_old_notes(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    frame = 1 - F.pad(torch.ones((1, 40, 40)), (12,) * 4)
    run(mask=frame)
    assert "marks what is around the subject" in shown[-1] and "S* learned in" in shown[-1]
    run(mask=torch.zeros((1, 64, 64)))
    assert "mask is" not in shown[-1] and "S* learned in" in shown[-1]
    run()
    assert "S* was learned before" in shown[-1]


def test_at_no_steps_nothing_is_called_learned(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(settings=dataclasses.replace(LOOKING, steps=0))
    assert "S* is the encoder's first answer (0 steps: nothing is tuned)" in shown[-1] and "learned" not in shown[-1]


def test_a_photo_that_the_domain_does_not_know_is_learned_with_a_warning(run, domain, monkeypatch, caplog):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)

    def knows(threshold):
        # As loaded from a file: another object of the same content.
        return dataclasses.replace(domain, info=dataclasses.replace(domain.info, fit_threshold=threshold))

    with caplog.at_level(logging.WARNING):
        run(image=photo(2), of=knows(1.0))
    told = "photos 1, 2 do not look like 'face' (score"
    # Said before the tuning, so that it can be cancelled, and after it.
    first = next(number for number, text in enumerate(shown) if told in text)
    assert told not in shown[0] and "step 1" not in "".join(shown[:first])
    assert told in shown[-1] and "learned in" in shown[-1]
    gains = [float(score) for score in re.search(r"score ([-\d.]+), ([-\d.]+),", shown[-1]).groups()]
    assert max(gains) < 1
    assert told in caplog.text
    run(image=photo(2), of=knows(1.0))
    assert "was learned before" in shown[-1] and told in shown[-1]
    monkeypatch.setattr(photo_fit, "photo_gains", lambda *arguments: (0.2, -0.1))
    run(image=photo(2), of=knows(0.05), seed=9)
    assert "photo 2 does not look like 'face' (score -0.10" in shown[-1]
    monkeypatch.undo()
    monkeypatch.setattr(progress, "show_text", shown.append)
    for threshold in (-1e6, None):
        run(image=photo(2, seed=1), of=knows(threshold), seed=2 if threshold else 3)
        assert "look like" not in shown[-1]


def test_a_domain_without_a_threshold_spends_no_pass_on_the_question(run, monkeypatch):
    asked = []
    monkeypatch.setattr(photo_fit, "photo_gains", lambda *arguments: asked.append(arguments) or ())
    assert run()[2].notes == () and not asked


def test_the_node_says_when_the_domain_that_finds_the_subject_was_trained_without_masks(run, domain, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(settings=LOOKING)
    assert "was not trained with masks" in shown[-1]
    run(settings=LOOKING, mask=torch.ones((1, 64, 64)))
    assert "trained with masks" not in shown[-1]
    run(
        settings=LOOKING, of=dataclasses.replace(domain, info=dataclasses.replace(domain.info, trained_with_masks=True))
    )
    assert "The subject is found by itself" in shown[-1] and "trained with masks" not in shown[-1]


@pytest.mark.parametrize("word", ["face", "of", "Anna", "CAT"])
def test_an_everyday_word_as_a_trigger_is_told(run, monkeypatch, word):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(word=word)
    assert f"'{word}' is an everyday word" in shown[-1] and "capitals count" in shown[-1]


@pytest.mark.parametrize("word", ["S*", "ohwx", "sks", "my-cat", "anna*"])
def test_a_rare_trigger_is_not_talked_about(run, monkeypatch, word):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(word=word)
    assert "everyday" not in shown[-1]


def test_the_node_says_which_settings_are_not_the_preset_s(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(settings=dataclasses.replace(QUICK, steps=1, learning_rate=2e-5, train_unet=not QUICK.train_unet))
    assert "the domain's own preset, but" in shown[-1] and "learning_rate 2e-05 (" in shown[-1]
    assert f"train_unet {'off (on)' if QUICK.train_unet else 'on (off)'}" in shown[-1]
    run(settings=None)
    assert "Settings:" not in shown[-1]


def test_the_node_says_when_a_mask_only_decides_the_crop(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    mask = torch.ones((1, 64, 64))
    run(mask=mask, settings=dataclasses.replace(LOOKING, use_mask=False))
    assert "mask decides the crop only" in shown[-1]
    run(mask=mask, settings=dataclasses.replace(LOOKING, use_mask=True))
    assert "crop only" not in shown[-1]


def test_the_node_says_that_it_looks_for_the_subject_where_there_is_no_mask(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    for mask in (None, torch.zeros((1, 64, 64))):
        run(settings=LOOKING, mask=mask)
        assert "The subject is found by itself" in shown[-1]
    for changes in ({"find_subject": False}, {"use_mask": False}, {"steps": 0}):
        run(settings=dataclasses.replace(LOOKING, **changes))
        assert "subject" not in shown[-1].replace("find_subject", "")
    run(settings=LOOKING, mask=torch.ones((1, 64, 64)))
    assert "subject" not in shown[-1].replace("find_subject", "")


def test_the_preview_dims_what_is_not_learned(run, domain, monkeypatch):
    sent, masks, original = [], [], progress.Progress.step
    monkeypatch.setattr(progress.Progress, "_send", lambda self, value, maximum, picture: sent.append(picture))

    def step(self, report):
        masks.append(report.masks)
        original(self, report)

    monkeypatch.setattr(progress.Progress, "step", step)
    # Cells enough to have some beside the rim.
    finer = dataclasses.replace(domain, info=dataclasses.replace(domain.info, image_size=2 * domain.info.image_size))
    run(of=finer, mask=(torch.arange(64) < 32).float().expand(1, 64, 64))
    first, last = (np.asarray(p).astype(float) for p in (sent[0], [p for p in sent if p is not None][-1]))
    learned = F.interpolate(masks[-1], size=first.shape[:2], mode="nearest")
    # Its rim is blurred: by one latent cell, and by the preview's scaling.
    cell = len(first) // masks[-1].shape[-1]
    inside, outside = (F.max_pool2d(part, 2 * cell + 1, 1, cell)[0, 0].numpy() == 0 for part in (1 - learned, learned))
    photo = last[:, : first.shape[1]]  # the loss curve is beside it
    assert inside.any() and outside.any()
    assert np.allclose(photo[inside], first[inside], atol=3)
    gray = pictures.DIM * first.mean(axis=-1, keepdims=True).repeat(3, axis=-1)
    # On average: the preview's scaling rings at edges, and where it is clipped depends on the brightness.
    assert np.abs(photo[outside] - gray[outside]).mean() < 2


def test_a_bypass_lora_is_told_of_because_tuning_does_not_see_it(run, base, caplog):
    model = base[0].clone()
    model.set_injections("bypass_lora", [PatcherInjection(lambda _: None, lambda _: None)])
    with caplog.at_level(logging.WARNING):
        run(model=model)
    assert "Load LoRA (Bypass) is not seen by tuning" in caplog.text
    caplog.clear()
    run()
    assert "Bypass" not in caplog.text


def test_a_model_that_lacks_the_clip_s_concept_says_so(run, caplog):
    model, clip, _, _ = run(word="A*")
    _, both_clip, _, _ = run(clip=clip, word="B*", image=photo(seed=4))
    with caplog.at_level(logging.WARNING):
        draw(model, both_clip, "B*")
    assert "B* is in a prompt, but this MODEL does not hold that concept" in caplog.text


def test_a_prompt_changed_beyond_recognition_keeps_the_static_word_and_says_so(run, caplog):
    model, clip, _, _ = run()
    positive = encode(clip, "a photo of S*")
    positive = [[tensor.flip(1), extra] for tensor, extra in positive]
    with caplog.at_level(logging.WARNING):
        picture = ksample(model, {"positive": positive, "negative": encode(clip, "blurry")})
    assert "S* in 1 of 2 prompts, but not refined in 1: a node changed that prompt" in caplog.text
    assert "none of" not in caplog.text
    assert torch.isfinite(picture).all()
    assert latent()["samples"].shape == picture.shape


def test_a_concept_learned_before_shows_its_own_preview_and_curve(run, monkeypatch):
    sent = []
    monkeypatch.setattr(progress.Progress, "_send", lambda self, *given: sent.append(given))
    settings = dataclasses.replace(LOOKING, steps=3)
    mask = (torch.arange(64) < 32).float().expand(1, 64, 64)
    run(settings=settings, mask=mask)
    first = [picture for _, _, picture in sent if picture is not None][-1]
    run(settings=settings, image=photo(seed=7))
    sent.clear()
    run(settings=settings, mask=mask)
    assert run.tunings == 2
    value, _, again = sent[-1]
    assert value == 0, "nothing was learned, so nothing advances"
    assert first.width == 512 and again.tobytes() == first.tobytes()


def test_the_node_says_which_step_it_is_at_and_how_long_it_takes(run, monkeypatch):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    run(settings=dataclasses.replace(LOOKING, steps=3))
    lines = [text.split("\n")[0] for text in shown]
    assert lines[:2] == ["Learning S* ...", "Learning S*: looking for the subject ..."]
    assert "Learning S*: step 1 of 3" in lines
    assert any(re.fullmatch(r"Learning S\*: step 2 of 3, about \d+ s left", line) for line in lines)
    assert lines[-1].startswith("S* learned in ")
    assert all("The subject is found by itself" in text for text in shown), "a note vanished meanwhile"


def test_the_node_says_where_it_was_cancelled(run, monkeypatch):
    shown, original = [], progress.Progress._tell_place
    monkeypatch.setattr(progress, "show_text", shown.append)

    def cancel(self, report):
        original(self, report)
        comfy.model_management.interrupt_current_processing(report.step == 2)

    monkeypatch.setattr(progress.Progress, "_tell_place", cancel)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(settings=dataclasses.replace(LOOKING, steps=3))
    assert shown[-1].startswith("S*: cancelled at step 2 of 3.")


@pytest.mark.parametrize(
    ("wired", "reason"),
    [({"vae": None}, "The checkpoint holds no VAE"), ({"image": torch.full((1, 64, 64, 3), float("nan"))}, "NaN")],
)
def test_an_error_is_on_the_node_too(run, monkeypatch, wired, reason):
    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    with pytest.raises(ValueError, match=reason):
        run(**wired)
    assert shown[-1].startswith("S*: stopped by an error: ") and reason in shown[-1]


def test_all_that_is_said_is_in_the_outputs_for_the_history(base, domain, monkeypatch):
    from e4t_pack.nodes.host.learning.request import LoadedDomain
    from e4t_pack.nodes.personalize import Personalize

    shown = []
    monkeypatch.setattr(progress, "show_text", shown.append)
    output = Personalize.execute(*base, LoadedDomain(domain), photo(), "S*", 1, None, chosen(LOOKING))
    assert output.ui["text"] == shown[-1].split("\n") and len(output.ui["text"]) > 1
    (panel,) = output.ui["e4t_learning"]
    assert panel["lines"] == output.ui["text"] and panel["state"] == "learned"
    # The history outlives "Free model and node cache", which promises that no photo is kept.
    assert set(output.ui) == {"text", "e4t_learning"} and "data:" not in json.dumps(output.ui)


def test_a_domain_names_the_base_it_was_trained_on(domain, folder):
    from e4t_pack.nodes.load_domain import LoadDomain

    from e4t_core.files.domain_file import save_domain

    trained = dataclasses.replace(domain.info, base_name="CompVis/stable-diffusion-v1-4")
    save_domain(folder / "named.safetensors", dataclasses.replace(domain, info=trained))
    save_domain(folder / "unnamed.safetensors", domain)
    said = LoadDomain.execute("named.safetensors").ui["text"][0]
    assert "was trained on Stable Diffusion 1.4 (CompVis/stable-diffusion-v1-4)" in said
    assert LoadDomain.execute("unnamed.safetensors").ui is None
