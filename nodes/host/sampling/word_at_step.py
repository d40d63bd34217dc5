"""What a concept's word is at one denoising evaluation: F(z_t, t) -> E -> e_c = e_d + s·E (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..networks.base_model import block_outputs, spatial_means
from .pieces import Conds, Size, bounded_features, given_size
from .place import Place
from .shared_pass import Contexts, EmptyPrompt, KnownHalf, may_share
from .word_lengths import WordLengths

if TYPE_CHECKING:
    from .held_concept import HeldConcept

# Batches of pictures whose words are remembered as one tensor: context windows choose other pictures each.
BATCHES = 64


@dataclass(frozen=True, eq=False)
class _Pass:
    """One feature pass, and the words that were predicted from it.

    Attributes:
        context: that it was made with.
        given: latents and noise levels, the very tensors.
        copies: of them, because samplers write into theirs.
        features: ``(B, width)`` on the encoder's device.
        words: by concept.
    """

    context: Tensor
    given: tuple[Tensor, Tensor]
    copies: tuple[Tensor, Tensor]
    features: Tensor
    words: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Known:
    """A picture's word: a row of words ``(B, D)`` that were predicted at one evaluation."""

    evaluation: int
    words: Tensor
    row: int


class WordAtStep:
    """Predicts words within ONE sampling run, and remembers what the next evaluation can use; make a new one per run.

    The word belongs to a picture, in however many pieces that is sampled: it is predicted from all of the picture, by
    passes no larger than the sampler's own (see ``pieces``), and kept picture by picture. An evaluation is one call of the
    guider, whatever it does meanwhile; a tensor that equals an earlier one is told by identity, so that the host need not
    wait for the device.
    """

    def __init__(self) -> None:
        self._whole: Tensor | None = None
        self._evaluation = -1
        self._call: tuple[Callable[..., Any], Any, Conds, Tensor, Tensor, dict[str, Any]] | None = None
        self._may_be_empty: Callable[[dict[str, Any]], bool] = lambda _cond: False
        self._sizes: dict[torch.Size, Size] = {}
        self._contexts = Contexts()
        self._passes: list[_Pass] = []
        self._ends: dict[str, float] = {}
        self._known: dict[str, dict[int, _Known]] = {}
        self._batches: dict[tuple[tuple[int, int], ...], tuple[list[_Known], Tensor]] = {}
        self._half: KnownHalf | None = None
        self.lengths = WordLengths()
        """How far each word went."""

    def predict_noise(self, executor: Callable[..., Any], x: Tensor, *arguments: Any, **options: Any) -> Any:
        """The PREDICT_NOISE wrapper: ``x`` is here before context windows choose among its pictures, or cut them."""
        before, self._whole = self._whole, x
        self._evaluation += 1
        self._passes = []
        try:
            return executor(x, *arguments, **options)
        finally:
            self._whole = before
            self._passes = []

    def evaluate(
        self,
        executor: Callable[..., Any],
        model: Any,
        conds: Conds,
        x: Tensor,
        sigma: Tensor,
        model_options: dict[str, Any],
        may_be_empty: Callable[[dict[str, Any]], bool],
    ) -> None:
        """A pass begins, with the arguments of the CALC_COND_BATCH wrapper: the words asked for next are for it.

        Args:
            may_be_empty: whether a conditioning is one prompt without a word, as far as anybody knows.
        """
        self._call = (executor, model, conds, x, sigma, model_options)
        self._may_be_empty, self._half = may_be_empty, None
        if self._whole is None:  # nobody told of the evaluation
            self._evaluation += 1

    def sharing(self, model_options: dict[str, Any]) -> dict[str, Any]:
        """A MODEL's options for the pass: with what the feature pass has computed of it already, if anything."""
        return model_options if self._half is None else self._half.options(model_options)

    def end(self) -> None:
        """The pass has ended."""
        self._half = self._call = None

    def word(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """e_c ``(B, D)`` of a concept; the very tensor of an earlier evaluation, where the word stays.

        It stays once the schedule has passed the concept's ``end_percent``, and between every ``refine_every`` evaluations.

        Args:
            held: the concept.
            model: ComfyUI's BaseModel that samples.
            x: ``(B, 4, h, w)`` at noise level ``sigma`` ``(B,)``.
        """
        key, settings = held.concept.fingerprint, held.concept.sampling
        known = self._known.setdefault(key, {})
        if settings.refine_every == 1 and settings.end_percent == 1:
            return self._predicted(held, model, x, sigma)
        pictures = self._pictures(x)
        if self._stays(held, model, sigma) and all(picture in known for picture in pictures):
            return self._together([known[picture] for picture in pictures])
        words = self._predicted(held, model, x, sigma)
        for row, picture in enumerate(pictures):
            # Of several passes over one evaluation the first is the picture's own; guidance changes it for others.
            if picture >= 0 and (picture not in known or known[picture].evaluation != self._evaluation):
                known[picture] = _Known(self._evaluation, words, row)
        return words

    def started(self, held: HeldConcept, model: Any, sigma: Tensor) -> bool:
        """Whether the schedule has reached the concept's ``start_percent``: before that, its word is the fixed one."""
        start = held.concept.sampling.start_percent
        return start == 0 or float(sigma[0]) <= float(model.model_sampling.percent_to_sigma(start))

    def _stays(self, held: HeldConcept, model: Any, sigma: Tensor) -> bool:
        key, settings = held.concept.fingerprint, held.concept.sampling
        if self._evaluation % settings.refine_every:
            return True
        if key not in self._ends:
            self._ends[key] = float(model.model_sampling.percent_to_sigma(settings.end_percent))
        return self._ends[key] > 0 and float(sigma[0]) < self._ends[key]

    def _together(self, known: list[_Known]) -> Tensor:
        """Words ``(B, D)`` of some pictures: the same tensor whenever they are asked for again."""
        words = known[0].words
        if all(one.words is words for one in known) and [one.row for one in known] == list(range(words.shape[0])):
            return words
        key = tuple((id(one.words), one.row) for one in known)
        if key not in self._batches:
            if len(self._batches) >= BATCHES:
                self._batches.clear()
            self._batches[key] = (known, torch.stack([one.words[one.row] for one in known]))
        return self._batches[key][1]

    def _pictures(self, x: Tensor) -> list[int]:
        """Which pictures of the sampled batch the rows of ``x`` are, or show a piece of; -1: not known."""
        whole, rows = self._whole, list(range(x.shape[0]))
        if whole is None or whole is x or (whole.shape == x.shape and torch.equal(whole, x)):
            return rows
        if whole.shape[1:] == x.shape[1:]:
            found = [torch.nonzero((whole == row).flatten(1).all(dim=1)) for row in x]
            if all(len(index) for index in found):
                return [int(index[0]) for index in found]
        # A window of each picture, or each picture changed by a guidance method.
        return rows if whole.shape[0] == x.shape[0] else [-1] * len(rows)

    def _predicted(self, held: HeldConcept, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """e_c ``(B, D)``; several passes over one evaluation cost one prediction."""
        if held.place is not None:
            return self._predicted_in_place(held, held.place, model, x, sigma)
        size, whole = self._size_given(x), self._whole
        if whole is not None and whole.shape[0] == x.shape[0] and whole.shape != x.shape and whole.ndim == x.ndim:
            # A window that cuts the pictures themselves.
            x = whole
        empty = self._empty_prompt(held, x, size)
        context = held.empty if empty is None else empty.context
        made = next((made for made in self._passes if self._is_of(made, context, x, sigma)), None)
        if made is None:
            features = self._features(held, model, context, empty, x, sigma, size)
            if self._whole is None:
                self._passes = [made for made in self._passes if self._is_of(made, made.context, x, sigma)]
            made = _Pass(context, (x, sigma), (x.clone(), sigma.clone()), features)
            self._passes.append(made)
        key = held.concept.fingerprint
        if key not in made.words:
            made.words[key] = held.predictor.word(made.features)
            self.lengths.note(held, made.words[key], model, sigma)
        return made.words[key]

    def _predicted_in_place(self, held: HeldConcept, place: Place, model: Any, x: Tensor, sigma: Tensor) -> Tensor:
        """e_c ``(B, D)`` from what lies in the concept's region, with its weights in the network."""
        key = held.concept.fingerprint
        made = next(
            (made for made in self._passes if key in made.words and self._is_of(made, held.empty, x, sigma)), None
        )
        if made is None:
            piece = place.piece(x)
            size = (piece.shape[0], *piece.shape[2:])
            features = self._features(held, model, held.empty, None, piece, sigma, size, place)
            word = held.predictor.word(features)
            made = _Pass(held.empty, (x, sigma), (x.clone(), sigma.clone()), features, {key: word})
            self._passes.append(made)
            self.lengths.note(held, word, model, sigma)
        return made.words[key]

    def _is_of(self, made: _Pass, context: Tensor, x: Tensor, sigma: Tensor) -> bool:
        """Whether a feature pass was made with this context, these latents and levels."""
        if not self._contexts.equal(made.context, context):
            return False
        if self._whole is not None and made.given[0] is x and made.given[1] is sigma:
            return True
        return torch.equal(made.copies[0], x) and torch.equal(made.copies[1], sigma)

    def _empty_prompt(self, held: HeldConcept, x: Tensor, size: Size) -> EmptyPrompt | None:
        """The conditionings whose pass is to be the feature pass as well, if any."""
        assert self._call is not None
        _, model, conds, evaluated, _, model_options = self._call
        whole = x is evaluated and size == (x.shape[0], *x.shape[2:])
        if not (held.concept.sampling.share_pass and whole and may_share(model, model_options)):
            return None
        return self._contexts.find_empty(conds, held.empty, self._may_be_empty)

    def _features(
        self,
        held: HeldConcept,
        model: Any,
        context: Tensor,
        empty: EmptyPrompt | None,
        x: Tensor,
        sigma: Tensor,
        size: Size,
        place: Place | None = None,
    ) -> Tensor:
        """F ``(B, width)`` on the encoder's device."""
        patcher = getattr(model, "current_patcher", None)
        hooks = None if place is None else place.hooks
        if patcher is not None and patcher.current_hooks is not hooks:
            # The last prompt's hooks would still be in the weights; the word must not depend on who came last.
            patcher.apply_hooks(hooks)
        network, dtype = model.diffusion_model, model.get_dtype_inference()
        levels = sigma if sigma.shape[0] == x.shape[0] else sigma[:1].expand(x.shape[0])
        t = model.model_sampling.timestep(levels).float()
        context = context.to(x.device, dtype)

        def means(part: Tensor, rows: slice) -> Tensor:
            z = model.model_sampling.calculate_input(levels[rows], part).to(dtype)
            outputs = block_outputs(network, z, t[rows], context.expand(part.shape[0], -1, -1), {})
            if empty is not None and self._half is None:
                kept = list(outputs)
                self._half = KnownHalf(network, z.shape, kept, empty.prompts)
                return spatial_means(kept)
            return spatial_means(outputs)

        return bounded_features(means, x, size).to(next(held.predictor.network.parameters()).device)

    def _size_given(self, x: Tensor) -> Size:
        """How large a latent the UNet is given of one like ``x``; looked for once per run and shape."""
        if x.shape not in self._sizes:
            assert self._call is not None
            self._sizes[x.shape] = given_size(*self._call)
        return self._sizes[x.shape]
