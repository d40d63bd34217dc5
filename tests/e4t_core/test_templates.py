import pytest

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
