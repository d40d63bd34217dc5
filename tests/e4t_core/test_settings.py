import pytest

from e4t_core.methods.e4t.settings import PRESETS, TuningSettings


def test_the_papers_presets() -> None:
    face, cat, art = PRESETS["face"], PRESETS["cat"], PRESETS["art"]
    assert (face.steps, face.learning_rate, face.regularization, face.use_mask) == (15, 1.6e-5, 0.1, True)
    assert (cat.steps, cat.learning_rate, cat.regularization) == (5, 4.8e-5, 1e-4)
    assert (art.steps, art.learning_rate, art.regularization) == (5, 4.8e-5, 1e-4)
    assert all(preset.batch >= 16 for preset in PRESETS.values())


@pytest.mark.parametrize(
    "name, value",
    [
        ("steps", -1),
        ("steps", 2.5),
        ("steps", 10**400),
        ("learning_rate", 10**400),
        ("batch", 0),
        ("micro_batch", -1),
        ("learning_rate", -1e-5),
        ("learning_rate", float("nan")),
        ("learning_rate", 0.0),
        ("regularization", float("inf")),
        ("encoder_rate", 0.0),
        ("encoder_rate", 1.5),
        ("word_strength", 0.0),
        ("word_strength", 1.05),
        ("mask_threshold", 1.0),
        ("mask_threshold", -0.1),
        ("beta1", 1.0),
        ("beta2", -0.1),
        ("use_mask", 1),
        ("eps", "small"),
    ],
)
def test_a_value_out_of_range_is_named(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TuningSettings(**{name: value})  # type: ignore[arg-type]


def test_training_nothing_is_refused_unless_there_are_no_steps() -> None:
    nothing = {"train_encoder": False, "train_offsets": False, "train_unet": False}
    with pytest.raises(ValueError, match="train nothing"):
        TuningSettings(steps=1, **nothing)
    TuningSettings(steps=0, learning_rate=0.0, **nothing)
