"""What "E4T Personalize" says about a photo and what became of it, beside what the settings do."""

from __future__ import annotations

from collections.abc import Sequence

from ....e4t_core.methods.e4t.domain_info import DomainInfo
from ....e4t_core.methods.e4t.photo_fit import unusual


def about_fit(info: DomainInfo, gains: Sequence[float]) -> list[str]:
    """A warning if photos do not look like what the domain was trained for.

    Args:
        gains: of each photo, as ``photo_fit.photo_gains`` gives them; empty if they were not measured.
    """
    found = unusual(gains, info.fit_threshold)
    if not found:
        return []
    which = "this photo does" if len(gains) == 1 else f"photo {found[0] + 1} does"
    if len(found) > 1:
        which = f"photos {', '.join(str(number + 1) for number in found)} do"
    scores = ", ".join(f"{gains[number]:.2f}" for number in found)
    warning = (
        f"To the domain {info.name!r} {which} not look like {info.word!r} (score {scores}, usual {info.fit_threshold:.2f}"
        " or more): the result may not look like it. Crop closer with a mask, or load a domain that was made for it."
    )
    return [warning]


def about_subject(info: DomainInfo) -> list[str]:
    """How the subject is found where nobody painted a mask."""
    told = "The subject is found by itself (bright in the preview). Paint or wire in a mask to choose it."
    if not info.trained_with_masks:
        told += f" The domain {info.name!r} was not trained with masks, so it may take some background for the subject."
    return [told]


def what_was_made(trigger: str, steps: int, seconds: float) -> str:
    """One sentence: what the trigger stands for now."""
    if steps == 0:
        return f"{trigger} is the encoder's first answer (0 steps: nothing is tuned), made in {seconds:.1f} s."
    return f"{trigger} learned in {seconds:.1f} s."
