"""Iterative refinement (paper, section 3.1): at every denoising evaluation the word is predicted anew.

    F(z_t, t) -> E -> e_c = e_d + s·E -> text encoder -> cross-attention context

One wrapper per MODEL holds all its concepts. It sits where the separate conditionings are still apart (CALC_COND_BATCH),
before ControlNet, area crop and batching, so it works under every sampler and guider, and it replaces only what it
recognizes by content: never the dictionaries it was given, never a prompt without the word.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.patcher_extension import WrapperExecutor
from torch import Tensor

from ..node_text import show_text
from ..prompt.drawn_elsewhere import note_refinement
from ..prompt.encoded_prompt import EncodedPrompt, marks_of
from ..prompt.prompt_memory import PromptMemory
from ..prompt.recognition import Recipe, Row, recognize
from ..prompt.reencoding import UnfaithfulError
from .announcement import CHANGED, HIDDEN, REGION, Sighting, Sightings, announcement
from .control_hints import with_own_hints
from .held_concept import HeldConcept
from .layer_patch import LayerPatch
from .layer_reading import EncodeWith, LayerReading, rows_of
from .named_concepts import drawn_without, unnamed
from .regions import Region, Regions, find_regions
from .word_at_step import WordAtStep

logger = logging.getLogger(__name__)

# Conditioning tensors that are known by identity; where a node cuts new ones at every step, their rows are known still.
TENSORS = 64
# Of one prompt, encoded with words of some evaluations: one, or as many as context windows choose pictures differently.
CONTEXTS = 16

Conds = list[list[dict[str, Any]] | None]


@dataclass
class _Run:
    """What is remembered within one sampling run; thrown away at its end."""

    told: int = -1  # failures that were told of; -1: nothing was told yet
    roles: dict[object, str] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()
    failed: dict[EncodedPrompt, str] = field(default_factory=dict)
    regions: Regions | None = None
    recipes: dict[int, tuple[Tensor, Recipe | None]] = field(default_factory=dict)
    rows: dict[Hashable, Row] = field(default_factory=dict)
    words: WordAtStep = field(default_factory=WordAtStep)
    layers: LayerReading = field(default_factory=lambda: LayerReading({}))
    contexts: dict[EncodedPrompt, dict[Hashable, tuple[dict[str, Tensor], Tensor]]] = field(default_factory=dict)


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
        self._run = self._new_run()

    def _new_run(self) -> _Run:
        return _Run(layers=LayerReading.of(self.concepts))

    def forget_run(self, _patcher: object = None) -> None:
        """Called when sampling ends, also by cancel or error."""
        ended, self._run = self._run, self._new_run()
        try:
            ended.words.lengths.send()
        except Exception as error:
            # A picture must not be lost because of a curve.
            logger.warning("E4T: the word's lengths could not be told: %s", error, exc_info=True)

    def begin(self, executor: WrapperExecutor, *arguments: Any, **options: Any) -> Any:
        """The OUTER_SAMPLE wrapper: only here are the prompts' roles known ("positive", "negative" ...), and the weights not yet
        those of the run."""
        guider = executor.class_obj
        conds = getattr(guider, "conds", {})
        places = [held.place for held in self.concepts if held.place is not None]
        if places:
            noise = arguments[0]
            guider.conds = conds = with_own_hints(conds, places, (noise.shape[-2], noise.shape[-1]))
        self._run.roles = {cond.get("uuid"): role for role, group in conds.items() for cond in group or ()}
        left_out = unnamed(self.concepts, conds, getattr(guider, "model_options", {}), self._memory)
        self._run.left_out = frozenset(held.concept.fingerprint for held in left_out)
        with drawn_without(guider, self.concepts, left_out):
            return executor(*arguments, **options)

    def predict_noise(self, executor: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """The PREDICT_NOISE wrapper: what is sampled, before anything cuts it."""
        return self._run.words.predict_noise(executor, *arguments, **options)

    def __call__(
        self, executor: Callable[..., Any], model: Any, conds: Conds, x: Tensor, sigma: Tensor, model_options: dict
    ) -> Any:
        """One evaluation: ``x`` ``(B, 4, h, w)`` at noise level ``sigma`` ``(B,)``."""
        note_refinement(self._memory)
        self._run.words.evaluate(executor, model, conds, x, sigma, model_options, self._may_be_empty)
        if self._run.regions is None:
            self._run.regions = self._find_regions(conds, model_options)
        places = self._run.layers.places(lambda: (name for name, _ in model.diffusion_model.named_parameters()))
        layers = LayerPatch(places, x.shape[0])
        refined: Conds = []
        for group in conds:
            refined.append(group and [self._refine(cond, model, x, sigma, layers) for cond in group])
        regions, words = self._run.regions, self._run.words
        for region in regions.found:
            region.context = None
            if region.followed is not False:
                region.context = self._rebuilt(region.recipe, model, x, sigma, layers, region)
        if not regions.found:
            self._announce(conds)
        try:
            options = layers.options(regions.options(model_options, x.shape[0]))
            made = executor(model, refined, x, sigma, words.sharing(options))
        finally:
            words.end()
        if regions.found:
            # Only now is it known whether cross-attention was given them.
            regions.seen()
            self._announce(conds)
        return made

    def _find_regions(self, conds: Conds, model_options: dict) -> Regions:
        try:
            return find_regions(conds, model_options, self._memory)
        except Exception as error:
            logger.warning("E4T: regions of other nodes could not be looked through: %s", error, exc_info=True)
            return Regions()

    def _refine(self, cond: dict[str, Any], model: Any, x: Tensor, sigma: Tensor, layers: LayerPatch) -> dict[str, Any]:
        recipe = self._recipe(cond)
        context = self._rebuilt(recipe, model, x, sigma, layers) if recipe and _is_active(cond, sigma) else None
        if context is None:
            return cond
        old = cond["model_conds"]["c_crossattn"]
        # Others hold these dictionaries too (guiders, clones): a copy gets the new context.
        return {**cond, "model_conds": {**cond["model_conds"], "c_crossattn": type(old)(context)}}

    def _rebuilt(
        self, recipe: Recipe, model: Any, x: Tensor, sigma: Tensor, layers: LayerPatch, region: Region | None = None
    ) -> Tensor | None:
        """A conditioning with the words of this evaluation, ``(B, T, D)`` or fewer rows; None where none is refined.

        What single layers read in its place is added to ``layers``.
        """
        fresh = {}
        for prompt in recipe.prompts():
            context = self._encoded_anew(prompt, recipe.latents_of(prompt, x.shape[0]), model, x, sigma)
            if context is not None:
                fresh[prompt] = context
        context = recipe.rebuild(fresh) if fresh else None
        if self._run.layers.stands_in(recipe):

            def encode(prompt: EncodedPrompt, words: Mapping[str, Tensor]) -> Tensor:
                latents = recipe.latents_of(prompt, x.shape[0])
                refined = self._words(prompt, latents, model, x, sigma) if prompt in fresh else {}
                return self._encoded(prompt, {**refined, **words}, latents, x.shape[0], model)

            given = recipe.tensor if context is None else context
            self._add_layers(recipe, given, fresh, encode, layers, region)
        return context

    def _add_layers(
        self,
        recipe: Recipe,
        given: Tensor,
        fresh: Mapping[EncodedPrompt, Tensor],
        encode: EncodeWith,
        layers: LayerPatch,
        region: Region | None,
    ) -> None:
        held = [prompt for prompt in recipe.prompts() if prompt not in self._run.failed]
        try:
            layered = self._run.layers.layered(recipe, given, fresh, encode, self._run.failed, region)
        except Exception as error:
            logger.warning("E4T: a prompt could not be encoded for single layers: %s", error, exc_info=True)
            self._run.failed |= {prompt: _why(error) for prompt in held}
            return
        if layered is not None:
            layers.layered.append(layered)

    def _encoded_anew(
        self, prompt: EncodedPrompt, latents: Sequence[int], model: Any, x: Tensor, sigma: Tensor
    ) -> Tensor | None:
        """A prompt with the words of this evaluation, ``(B, T, D)`` or ``(1, T, D)``; None where they stay fixed.

        Args:
            latents: those of ``x`` that the prompt is for; rows of others mean nothing.
        """
        try:
            words = self._words(prompt, latents, model, x, sigma)
            return self._context(prompt, words, latents, x.shape[0], model) if words else None
        except Exception as error:
            # A sampler must not end because of a word: the fixed one is in the prompt already.
            known = isinstance(error, UnfaithfulError)
            logger.warning("E4T: a prompt could not be encoded again: %s", error, exc_info=not known)
            self._run.failed[prompt] = _why(error)
            return None

    def _words(
        self, prompt: EncodedPrompt, latents: Sequence[int], model: Any, x: Tensor, sigma: Tensor
    ) -> dict[str, Tensor]:
        """The words of this evaluation ``(B, D)`` by concept; none of those that stay fixed."""
        held = [self._by_fingerprint[key] for key in prompt.concepts if key in self._by_fingerprint]
        following = [concept for concept in held if concept.concept.refines]
        if not following or prompt.encode is None or prompt in self._run.failed or not latents:
            return {}
        following = [concept for concept in following if self._run.words.started(concept, model, sigma)]
        return {one.concept.fingerprint: self._run.words.word(one, model, x, sigma) for one in following}

    def _recipe(self, cond: dict[str, Any]) -> Recipe | None:
        """How this conditioning is made of remembered prompts; looked up once per run and tensor."""
        attention = cond.get("model_conds", {}).get("c_crossattn")
        tensor = getattr(attention, "cond", None)
        if not torch.is_tensor(tensor) or tensor.ndim != 3:
            return None
        if id(tensor) not in self._run.recipes:
            if len(self._run.recipes) >= TENSORS:
                self._run.recipes.clear()
            recipe = self._recognized(tensor, cond)
            # The tensor is kept with its recipe, so that its id cannot be given to another one.
            self._run.recipes[id(tensor)] = (tensor, recipe)
        return self._run.recipes[id(tensor)][1]

    def _may_be_empty(self, cond: dict[str, Any]) -> bool:
        """Whether a conditioning is one prompt without a word, or nobody knows; a mix of prompts is only near to one."""
        recipe = self._recipe(cond)
        return recipe is None or (not recipe.prompts() and len(recipe.sources()) == 1)

    def _recognized(self, tensor: Tensor, cond: dict[str, Any]) -> Recipe | None:
        try:
            return recognize(tensor, marks_of(cond), self._memory, self._run.rows)
        except Exception as error:
            logger.warning("E4T: a prompt could not be recognized: %s", error, exc_info=True)
            return None

    def _context(
        self, prompt: EncodedPrompt, words: dict[str, Tensor], latents: Sequence[int], count: int, model: Any
    ) -> Tensor:
        """The prompt encoded with these words, ``(count or 1, T, D)``; the very same words are not encoded twice."""
        known = self._run.contexts.setdefault(prompt, {})
        key = (*((name, id(word)) for name, word in words.items()), *latents)
        if key not in known:
            if len(known) >= CONTEXTS:
                known.clear()
            # The words are kept with it, so that their ids cannot be given to others.
            known[key] = (words, self._encoded(prompt, words, latents, count, model))
        return known[key][1]

    def _encoded(
        self, prompt: EncodedPrompt, words: dict[str, Tensor], latents: Sequence[int], count: int, model: Any
    ) -> Tensor:
        assert prompt.encode is not None
        company = [model.current_patcher] if getattr(model, "current_patcher", None) is not None else []
        if len(latents) == count:
            return prompt.encode(words, company)
        some = prompt.encode(rows_of(words, latents), company)
        if some.shape[0] == 1:
            return some
        full = some.new_zeros((count, *some.shape[1:]))
        full[latents] = some
        return full

    def _announce(self, conds: Conds) -> None:
        """At a run's first evaluation, and when something changes, say in the log and on the node where each word is."""
        if len(self._run.failed) == self._run.told:
            return
        self._run.told = len(self._run.failed)
        given = [cond for group in conds if group for cond in group]
        encoded = {key for prompt in self._memory.prompts() for key in prompt.concepts}
        # Concepts of this MODEL that no prompt names are told of, too.
        concepts = {
            (key := held.concept.fingerprint): Sightings(
                held.concept.trigger,
                refines=held.concept.refines,
                layers=held.concept.attention is not None,
                encoded=key in encoded,
                left_out=key in self._run.left_out,
            )
            for held in self.concepts
        }
        for cond in given:
            recipe = self._recipe(cond)
            role = self._run.roles.get(cond.get("uuid"), "")
            for key, (trigger, why) in (self._seen_in(recipe) | self._unfollowed(cond, given)).items():
                sightings = concepts.setdefault(key, Sightings(trigger, held=False))
                sightings.seen.append(Sighting(role, why))
            prompts = [*marks_of(cond), *(source.prompt for source in (recipe.sources() if recipe else []))]
            for key, said in ((key, said) for prompt in prompts for key, said in prompt.near.items()):
                if key in concepts:
                    concepts[key].near = said
        regions = self._run.regions.found if self._run.regions else []
        for region in regions:
            for key, (trigger, why) in self._seen_in(region.recipe).items():
                sightings = concepts.setdefault(key, Sightings(trigger, held=False))
                sightings.seen.append(Sighting("region", why or ("" if region.followed else REGION)))
        unknown = sum((recipe := self._recipe(cond)) is None or not recipe.complete for cond in given)
        text, good = announcement(concepts, len(given) + len(regions), unknown)
        logger.log(logging.INFO if good else logging.WARNING, "E4T: %s", text)
        show_text(text)

    def _seen_in(self, recipe: Recipe | None) -> dict[str, tuple[str, str]]:
        """Concept -> its trigger, and why its word is fixed there ("": it is not), in a recognized conditioning."""
        seen: dict[str, tuple[str, str]] = {}
        for source in recipe.sources() if recipe else []:
            prompt = source.prompt
            why = HIDDEN if prompt.encode is None else self._run.failed.get(prompt, "")
            for key, trigger in prompt.concepts_in(source.chunk).items():
                seen[key] = (trigger, seen.get(key, ("", ""))[1] or why)
        return seen

    def _unfollowed(self, cond: dict[str, Any], given: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
        """Concepts that a conditioning is marked with, where its tensor matches no remembered prompt."""

        def matches(other: dict[str, Any]) -> bool:
            recipe = self._recipe(other)
            return recipe is not None and recipe.complete

        # ComfyUI copies a prompt's dictionary, mark and uuid included, onto a negative with the same area.
        twins = [other for other in given if other.get("uuid") == cond.get("uuid") and other.get("uuid") is not None]
        if any(matches(other) for other in (cond, *twins)):
            return {}
        seen = self._seen_in(self._recipe(cond))
        marked = {key: trigger for prompt in marks_of(cond) for key, trigger in prompt.concepts.items()}
        return {key: (trigger, CHANGED) for key, trigger in marked.items() if key not in seen}


def _why(error: Exception) -> str:
    """Why a word stays fixed, in a few words."""
    return HIDDEN if isinstance(error, UnfaithfulError) else f"encoding it again failed ({type(error).__name__})"


def _is_active(cond: dict[str, Any], sigma: Tensor) -> bool:
    """Whether this conditioning's timestep range holds now; outside it nothing needs to be encoded."""
    if "timestep_start" in cond and float(sigma[0]) > float(cond["timestep_start"]):
        return False
    return not ("timestep_end" in cond and float(sigma[0]) < float(cond["timestep_end"]))
