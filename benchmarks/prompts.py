"""The quality benchmark's 11 prompts for each identity, fixed before any picture of it was drawn.

plain; 2 styles; 3 backgrounds and 2 accessories, none of them the concept photo's; 1 zoom; 2 compounds. Where a prompt
leaves something open, the rendering that serves as the ceiling has a plain value that is never the photo's.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniworld.attributes import ACCESSORIES, BACKGROUNDS, STYLES, Identity, Scene
from miniworld.captions import compose, scene_phrases

from .scoring import Target

PHOTO = STYLES.index("photo")


@dataclass(frozen=True)
class Prompt:
    """Attributes:
    text: with "{}" where the word, or whatever an arm puts there, stands.
    scene: what a right picture shows.
    asked: the edits named in the text.
    """

    text: str
    scene: Scene
    asked: tuple[str, ...]


def _prompt(plain: Scene, **asked: int) -> Prompt:
    scene = plain.edited(**asked)
    named = {edit: edit in asked for edit in ("accessory", "background", "zoom")}
    text = compose(scene.style, "{}", scene_phrases(scene, **named))
    return Prompt(text, scene, tuple(asked))


def prompts(photo: Scene, number: int) -> tuple[Prompt, ...]:
    """The 11 prompts of the identity with this number, whose concept photo shows this scene."""
    others = [(photo.background + step) % len(BACKGROUNDS) for step in (2, 4, 5, 7, 3)]
    worn = [a for a in range(1, len(ACCESSORIES)) if a != photo.accessory]
    worn = worn[number % len(worn) :] + worn[: number % len(worn)]
    styles = [1 + (number + step) % 3 for step in range(3)]
    plain = Scene(style=PHOTO, background=others[4])
    return (
        _prompt(plain),
        _prompt(plain, style=styles[0]),
        _prompt(plain, style=styles[1]),
        _prompt(plain, background=others[0]),
        _prompt(plain, background=others[1]),
        _prompt(plain, background=others[2]),
        _prompt(plain, accessory=worn[0]),
        _prompt(plain, accessory=worn[1]),
        _prompt(plain, zoom=1 + number % 2),
        _prompt(plain, style=styles[2], background=others[3]),
        _prompt(plain, accessory=worn[1], background=others[0], zoom=2 - number % 2),
    )


def targets(identity: Identity, asked: tuple[Prompt, ...]) -> list[Target]:
    """What the pictures of one identity should show, prompt by prompt."""
    return [Target(identity, prompt.scene, prompt.asked) for prompt in asked]


def seed_of(number: int, prompt: int, draw: int) -> int:
    """Seed of a picture's starting noise: of (identity, prompt, draw) alone, so that it is equal in every arm."""
    return 1_000_003 * (draw + 1) + 1000 * number + prompt
