import dataclasses

import kept
import pytest
import torch
from tiny import tiny_photos

from e4t_core.methods.textual_inversion import TextualInversion, TextualInversionSettings
from e4t_core.templates import NEUTRAL, SETS, STYLE, TEMPLATE_LIMIT, TEMPLATES_LIMIT, check_templates, templates_of


def test_a_set_is_named_and_sentences_are_given_as_they_are() -> None:
    assert templates_of(["neutral"]) == NEUTRAL and templates_of(["style"]) == STYLE
    assert templates_of(["a bust of {}", "style"]) == ("a bust of {}", *STYLE)
    for templates in SETS.values():
        check_templates(templates)


@pytest.mark.parametrize(
    "entries, told",
    [
        (["poems"], "'poems' must be one of neutral, style"),
        ([], "1 to 64"),
        (["a {}"] * (TEMPLATES_LIMIT + 1), "1 to 64"),
        (["{} and {}"], "{} once"),
        (["a photo of {word}"], "{} once"),
        (["a {0}"], "{} once"),
        (["{}" + "x" * TEMPLATE_LIMIT], "200 characters"),
        (["x" * 10_000], "must be one of"),
    ],
)
def test_what_is_no_template_is_told_in_a_short_sentence(entries: list[str], told: str) -> None:
    with pytest.raises(ValueError) as caught:
        templates_of(entries)
    assert told in str(caught.value) and len(str(caught.value)) < 400


def test_textual_inversion_learns_a_word_in_the_sentences_of_its_settings() -> None:
    settings = TextualInversionSettings(steps=2, batch=4, templates="a {} of face; a painting in the style of {};")
    assert settings.sentences() == ("a {} of face", "a painting in the style of {}")

    def learned(settings: TextualInversionSettings) -> torch.Tensor:
        base = kept.base(kept.WIDTH)
        return torch.Tensor(kept.train(TextualInversion("face"), base, tiny_photos(), settings, 1, "S*").embedding)

    neutral = dataclasses.replace(settings, templates="neutral")
    assert torch.equal(learned(neutral), learned(neutral)) and not torch.equal(learned(settings), learned(neutral))
    # So that a recipe learns the same again, and no result of other sentences is taken for it.
    assert settings.learned_with() != neutral.learned_with()


@pytest.mark.parametrize("templates", ["poems", "a photo", "; ;", "{} of {}"])
def test_sentences_without_the_word_are_refused(templates: str) -> None:
    with pytest.raises(ValueError, match="[Tt]emplate"):
        TextualInversionSettings(templates=templates)
