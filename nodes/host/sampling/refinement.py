"""Iterative refinement (paper, section 3.1): at every denoising evaluation the word is predicted anew.

    F(z_t, t) -> E -> e_c = e_d + s·E -> text encoder -> cross-attention context

One wrapper per MODEL holds all its concepts. It sits where the separate conditionings are still apart (CALC_COND_BATCH),
before ControlNet, area crop and batching, so it works under every sampler and guider, and it replaces only what it
recognises by content: never the dictionaries it was given, never a prompt without the word.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ....e4t_core.concept import Concept
from ..node_text import show_text
from ..prompt.concept_clip import MARK
from ..prompt.prompt_memory import EncodedPrompt, PromptMemory, Recipe
from .word_at_step import WordAtStep

logger = logging.getLogger(__name__)

Conds = list[list[dict[str, Any]] | None]


@dataclass(frozen=True, eq=False)
class HeldConcept:
    """A concept as a MODEL holds it.

    Attributes:
        concept: word, encoder, features.
        empty: context ``(1, L, D)`` of the empty prompt, by the text encoder it was tuned with.
        domain_offset: the offset of its domain that the MODEL holds since it was added, by canonical name.
    """

    concept: Concept
    empty: Tensor
    domain_offset: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class _Run:
    """What is remembered within one sampling run; thrown away at its end."""

    announced: bool = False
    recipes: dict[int, tuple[Tensor, Recipe | None]] = field(default_factory=dict)
    words: WordAtStep = field(default_factory=WordAtStep)
    contexts: dict[EncodedPrompt, tuple[dict[str, Tensor], Tensor]] = field(default_factory=dict)


class Refinement:
    """The CALC_COND_BATCH wrapper of one MODEL.

    It must have no attribute ``to``: ComfyUI would replace it by what that returns. Clones of a MODEL share it.

    Args:
        concepts: all that the MODEL holds.
        memory: of encoded prompts.
    """

    def __init__(self, concepts: Sequence[HeldConcept], memory: PromptMemory) -> None:
        self.concepts = tuple(concepts)
        self._by_fingerprint = {held.concept.fingerprint: held for held in self.concepts}
        self._memory = memory
        self._run = _Run()

    def forget_run(self, _patcher: object = None) -> None:
        """Called when sampling ends, also by cancel or error."""
        self._run = _Run()

    def predict_noise(self, executor: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The PREDICT_NOISE wrapper: what is sampled, before anything cuts it."""
        return self._run.words.predict_noise(executor, *arguments, **options)

    def __call__(
        self, executor: Callable[..., Any], model: Any, conds: Conds, x: Tensor, sigma: Tensor, model_options: dict
    ) -> Any:
        """One evaluation: ``x`` ``(B, 4, h, w)`` at noise level ``sigma`` ``(B,)``."""
        self._announce(conds)
        self._run.words.evaluate(executor, model, conds, x, sigma, model_options)
        refined: Conds = []
        for group in conds:
            refined.append(group and [self._refine(cond, model, x, sigma) for cond in group])
        return executor(model, refined, x, sigma, model_options)

    def _refine(self, cond: dict[str, Any], model: Any, x: Tensor, sigma: Tensor) -> dict[str, Any]:
        recipe = self._recipe(cond)
        if recipe is None or not _is_active(cond, sigma):
            return cond
        fresh = {}
        for prompt in recipe.prompts():
            words = {
                fingerprint: self._run.words.word(self._by_fingerprint[fingerprint], model, x, sigma)
                for fingerprint in prompt.concepts
                if fingerprint in self._by_fingerprint and self._by_fingerprint[fingerprint].concept.settings.refine
            }
            if words:
                fresh[prompt] = self._context(prompt, words, model)
        if not fresh:
            return cond
        old = cond["model_conds"]["c_crossattn"]
        # Others hold these dictionaries too (guiders, clones): a copy gets the new context.
        new = type(old)(recipe.rebuild(fresh))
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": new}}

    def _recipe(self, cond: dict[str, Any]) -> Recipe | None:
        """How this conditioning is made of remembered prompts; looked up once per run and tensor."""
        attention = cond.get("model_conds", {}).get("c_crossattn")
        tensor = getattr(attention, "cond", None)
        if not torch.is_tensor(tensor) or tensor.ndim != 3:
            return None
        if id(tensor) not in self._run.recipes:
            recipe = self._memory.recognise(tensor, cond.get(MARK, ()))
            # The tensor is kept with its recipe, so that its id cannot be given to another one.
            self._run.recipes[id(tensor)] = (tensor, recipe)
        return self._run.recipes[id(tensor)][1]

    def _context(self, prompt: EncodedPrompt, words: dict[str, Tensor], model: Any) -> Tensor:
        """The prompt encoded with these words ``(B or 1, T, D)``; equal words are not encoded twice."""
        known = self._run.contexts.get(prompt)
        if known is not None and known[0].keys() == words.keys():
            same = all(torch.equal(known[0][key], words[key]) for key in words)
            if same:
                return known[1]
        assert prompt.encode is not None
        company = [model.current_patcher] if getattr(model, "current_patcher", None) is not None else []
        context = prompt.encode(words, company)
        self._run.contexts[prompt] = (words, context)
        return context

    def _announce(self, conds: Conds) -> None:
        """At a run's first evaluation: say in the log and on the sampler node where each word is."""
        if self._run.announced:
            return
        self._run.announced = True
        given = [cond for group in conds if group for cond in group]
        # Concepts of this MODEL that no prompt names are told of, too.
        names = {held.concept.fingerprint: held.concept.word for held in self.concepts}
        followed, fixed = Counter[str](), Counter[str]()
        for cond in given:
            recipe = self._recipe(cond)
            here = {
                key: word for prompt in (recipe.prompts() if recipe else []) for key, word in prompt.concepts.items()
            }
            lost = self._unfollowed(cond, given)
            names |= here | lost
            followed.update(here.keys())
            fixed.update(lost.keys() - here.keys())
        text = "\n".join(self._tell(key, word, followed[key], fixed[key], len(given)) for key, word in names.items())
        good = all(key in self._by_fingerprint and followed[key] and not fixed[key] for key in names)
        logger.log(logging.INFO if good else logging.WARNING, "E4T: %s", text)
        show_text(text)

    def _tell(self, key: str, word: str, followed: int, fixed: int, given: int) -> str:
        """Where a concept's word is: in how many prompts, and in how many of them without refinement."""
        held = self._by_fingerprint.get(key)
        if held is None:
            return (
                f"{word} is in a prompt, but this MODEL does not hold that concept: wire the MODEL output of the"
                " E4T Personalize node that made it into the sampler."
            )
        if not followed and not fixed:
            return (
                f"{word} was found in none of {_prompts(given)}: write it into the prompt, and encode that with the"
                " CLIP output of E4T Personalize."
            )
        text = f"{word} in {followed + fixed} of {_prompts(given)}"
        if not held.concept.settings.refine:
            return f"{text} (refinement off)"
        if not fixed:
            return text
        return (
            f"{text}, but not refined in {fixed}: a node changed that prompt in a way that cannot be followed, so the"
            " word stays the same at all steps there."
        )

    def _unfollowed(self, cond: dict[str, Any], given: list[dict[str, Any]]) -> dict[str, str]:
        """Concept -> word that a conditioning is marked with, where its tensor matches no remembered prompt."""

        def matches(other: dict[str, Any]) -> bool:
            recipe = self._recipe(other)
            return recipe is not None and recipe.complete

        # ComfyUI copies a prompt's dictionary, mark and uuid included, onto a negative with the same area.
        twins = [other for other in given if other.get("uuid") == cond.get("uuid") and other.get("uuid") is not None]
        if any(matches(other) for other in (cond, *twins)):
            return {}
        return {key: word for prompt in cond.get(MARK, ()) for key, word in prompt.concepts.items()}


def _prompts(count: int) -> str:
    return "1 prompt" if count == 1 else f"{count} prompts"


def _is_active(cond: dict[str, Any], sigma: Tensor) -> bool:
    """Whether this conditioning's timestep range holds now; outside it nothing needs to be encoded."""
    level = float(sigma[0])
    if "timestep_start" in cond and level > float(cond["timestep_start"]):
        return False
    return not ("timestep_end" in cond and level < float(cond["timestep_end"]))
