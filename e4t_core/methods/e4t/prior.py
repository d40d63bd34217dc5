"""Prior distillation: what the photo does not show is drawn after the tuning as the domain drew it before.

A UNet that is tuned on one photo forgets: the domain word turns into the person, and styles and things that a prompt names are
obeyed less. DreamBooth (Ruiz et al. 2022, arXiv 2208.12242, section 3.3) learns pictures of the class beside the photos. Here the
untuned domain teaches, as in Learning without Forgetting (Li & Hoiem 2016, arXiv 1606.09282): before the first step it draws a few
small pictures and is asked what it predicts for them under noise, and the tuned networks follow it there,

    prior loss = mean((eps_tuned(z_t, t, prompt) - eps_untuned(z_t, t, prompt))^2),

at prompts of the domain word over all of the schedule, and at prompts that ask the word for what the photo does not show where noise
is high: there it is decided what a picture shows, and the likeness comes later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ddim import ddim
from ...diffusion import DiffusionSample, draw_samples
from ...run import OnPass
from ...separate_backward import separate_backward
from ...training import chunks
from .word_model import WordModel

PLAIN = ("a photo of {}", "a picture of {}", "a painting of {}", "{}")
"""Prompts of the domain word, which is to stay what it was."""
ASKING = (
    "a watercolor of {}",
    "a pencil sketch of {}",
    "a photo of {}, wearing a hat",
    "a photo of {}, wearing a crown",
    "a photo of {}, blue background",
    "a photo of {}, green background",
    "a watercolor of {}, wearing a crown, red background",
    "a pencil sketch of {}, wearing a hat, yellow background",
)
"""Prompts of the word, which are to be obeyed as before."""
# From which share of the schedule on.
PLAIN_FROM, ASKING_FROM = 0.0, 0.5
# Of the pictures: small looks, which need not be good.
STEPS, GUIDANCE = 8, 3.0


@dataclass(frozen=True, eq=False)
class Lesson:
    """A noisy picture and what the untuned domain predicts for it; on the CPU.

    Attributes:
        prompt: its number: first :data:`PLAIN`, then :data:`ASKING`.
        z: ``(4, h, w)``.
        t: timestep.
        prediction: ``(4, h, w)``.
    """

    prompt: int
    z: Tensor
    t: int
    prediction: Tensor


class Prior:
    """The lessons of a run: of every step, the same share are of the domain word and of the concept's.

    Args:
        words: of the run; its encoder is untuned while :meth:`ask` is called.
        latents: ``(n, 4, h, w)`` of the photos.
        clip_features: ``(n, L, C)`` of them.
        seed: of the run.
        batch, steps: of the run.
        each: lessons in every step, 1 to ``batch``.
    """

    def __init__(
        self,
        words: WordModel,
        latents: Tensor,
        clip_features: Tensor,
        seed: int,
        batch: int,
        steps: int,
        each: int,
    ) -> None:
        self._words, self._latents, self._clip_features = words, latents, clip_features
        self._seed, self._batch, self._each, self._steps = seed, batch, each, steps
        self._lessons: list[Lesson] = []

    def passes(self, micro_batch: int) -> int:
        """How often :meth:`ask` calls ``on_pass``."""
        pictures = len(PLAIN) + len(ASKING)
        return sum(1 for _ in chunks(pictures, micro_batch)) * STEPS + sum(
            1 for _ in chunks(self._steps * self._each, micro_batch)
        )

    @torch.no_grad()
    def ask(self, micro_batch: int, on_pass: OnPass) -> None:
        """Let the untuned domain draw and predict; call it inside ``unet.using(...)`` its weights.

        Args:
            micro_batch: how many pictures pass the UNet at once.
            on_pass: called after every step of a drawing and every prediction; whatever it raises passes through.
        """
        schedule = self._words.unet.schedule
        pictures = torch.cat([self._draw(numbers, on_pass) for numbers in chunks(_COUNT, micro_batch)])
        self._lessons = []
        for numbers in chunks(self._steps * self._each, micro_batch):
            sample = self._sample(numbers, "prior", self._each)
            prompts = [self._prompt(number) for number in numbers]
            least = [PLAIN_FROM if prompt < len(PLAIN) else ASKING_FROM for prompt in prompts]
            share = torch.tensor(least, device=sample.timesteps.device)
            last = schedule.timesteps - 1
            t = (share * last + (1 - share) * sample.timesteps).long()
            z = schedule.add_noise(pictures[prompts], sample.noise, t)
            predicted = self._words.unet.denoise(z, t, self._contexts(prompts, self._rows(prompts, z, t)))
            self._lessons += [
                Lesson(prompt, z[at].cpu(), int(t[at]), predicted[at].cpu()) for at, prompt in enumerate(prompts)
            ]
            on_pass()

    def losses(self, numbers: Sequence[int], separate: bool = False) -> tuple[Tensor, list[int]]:
        """The prior losses ``(k,)`` that go with samples of these global numbers, and the rows of the k samples among them.

        Each counts ``batch / each`` times, so that the mean over a batch's samples is the mean over its lessons.
        Call it, and its backward, inside ``unet.using(...)``.

        Args:
            numbers: of the run's samples; a step that has no lessons has no losses.
            separate: the pass has a backward pass of its own, see ``separate_backward``.
        """
        rows, lessons = [], []
        for row, number in enumerate(numbers):
            lesson = self._lesson_of(number)
            if lesson is not None:
                rows.append(row)
                lessons.append(lesson)
        unet, device = self._words.unet, self._latents.device
        if not lessons:
            return torch.zeros(0, device=device), rows
        prompts = [lesson.prompt for lesson in lessons]
        z = torch.stack([lesson.z for lesson in lessons]).to(device)
        t = torch.tensor([lesson.t for lesson in lessons], device=device)
        wanted = torch.stack([lesson.prediction for lesson in lessons]).to(device)

        def errors_of(words: Tensor) -> Tensor:
            made = unet.denoise(z, t, self._contexts(prompts, words))
            return (made - wanted).square().mean(dim=(1, 2, 3))

        words = self._rows(prompts, z, t)
        errors = separate_backward(errors_of, _with_gradient(words)) if separate else errors_of(words)
        return errors * (self._batch / self._each), rows

    def _lesson_of(self, number: int) -> Lesson | None:
        """The lesson beside a sample: they are spread evenly over a step's samples, and so over its micro-batches."""
        step, within = divmod(number, self._batch)
        at, before = (within + 1) * self._each // self._batch, within * self._each // self._batch
        found = step * self._each + before
        return self._lessons[found] if at > before and found < len(self._lessons) else None

    def _prompt(self, lesson: int) -> int:
        """Prompts take turns, and every other one is of the domain word."""
        turn, asks = divmod(lesson, 2)
        return len(PLAIN) + turn % len(ASKING) if asks else turn % len(PLAIN)

    def _draw(self, numbers: range, on_pass: OnPass) -> Tensor:
        """The pictures of prompts with these numbers, as latents ``(n, 4, h, w)``."""
        words, prompts = self._words, list(numbers)
        noise = self._sample(numbers, "prior picture", 1).noise

        def context(z: Tensor, t: Tensor) -> Tensor:
            return self._contexts(prompts, self._rows(prompts, z, t))

        return ddim(words.unet, noise, context, words.empty, STEPS, GUIDANCE, on_pass)

    def _sample(self, numbers: range, stream: str, batch: int) -> DiffusionSample:
        timesteps = self._words.unet.schedule.timesteps
        shape = self._latents.shape[1:]
        sample = draw_samples(self._seed, numbers, latent_shape=shape, batch=batch, timesteps=timesteps, stream=stream)
        return sample.to(self._latents.device)

    def _rows(self, prompts: Sequence[int], z: Tensor, t: Tensor) -> Tensor:
        """Word embeddings ``(k, D)``: the domain word, or the word as it is now for the noisy picture.

        No gradients go through the pass that looks at it: the photo's own samples teach that.
        """
        words = self._words
        rows = words.domain_word_embedding.expand(len(prompts), -1)
        asking = [at for at, prompt in enumerate(prompts) if prompt >= len(PLAIN)]
        if not asking:
            return rows
        at = torch.tensor(asking, device=z.device)
        # Photos take turns.
        features = self._clip_features[[prompts[n] % len(self._clip_features) for n in asking]]
        return rows.index_copy(0, at, words.at(words.offset(z[at], t[at], features, stop_gradient=True)))

    def _contexts(self, prompts: Sequence[int], words: Tensor) -> Tensor:
        return self._words.text.encode([(*PLAIN, *ASKING)[prompt] for prompt in prompts], words)


_COUNT = len(PLAIN) + len(ASKING)


def _with_gradient(words: Tensor) -> Tensor:
    return words if words.requires_grad else words.detach().requires_grad_()
