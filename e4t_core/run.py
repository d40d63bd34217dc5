"""What the training loop and the methods say to each other: what a run is given, what it answers, how far it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from .concept import Concept
from .diffusion import DiffusionSample
from .layer_contexts import Context
from .memory_need import Trained
from .memory_plan import MemoryPlan
from .photos import Photos
from .trained_weight import TrainedWeight
from .unet import TextEncoder, UNet

Phase = Literal["subject", "tuning", "word"]


@dataclass(frozen=True)
class BaseModel:
    """The base as it stands: with LoRAs, without other concepts.

    Attributes:
        unet, text: its networks.
        fingerprint: content hash of the UNet's effective weights; empty: a method computes it.
    """

    unet: UNet
    text: TextEncoder
    fingerprint: str = ""


@dataclass(frozen=True)
class StepReport:
    """Where a run stands, after every micro-batch.

    Attributes:
        phase: "subject" while the subject is looked for; "tuning"; "word" while the fixed word is averaged.
        step: optimizer step under way or just done, 1..steps; 0 if there are none yet.
        steps: number of optimizer steps.
        micro: micro-batch just done within the step (or another phase), 1..micros.
        micros: micro-batches per step (or in another phase).
        done: micro-batches done since the start, all phases together.
        total: micro-batches of the whole run.
        losses: losses of the finished steps.
        masks: ``(n, 1, h, w)``, by how much each latent cell of the photos is learned; none: all alike, or not known yet.
        notes: what a person should know already, each one sentence.
        draw: what the run would draw now, a latent ``(1, 4, h, w)``; only after a step. It changes nothing of the run.
    """

    phase: Phase
    step: int
    steps: int
    micro: int
    micros: int
    done: int
    total: int
    losses: tuple[float, ...]
    masks: Tensor | None = None
    notes: tuple[str, ...] = ()
    draw: Callable[[], Tensor] | None = None


OnStep = Callable[[StepReport], object]
OnPass = Callable[[], object]


class Run(Protocol):
    """One run of a method: private copies of all that trains. Nothing that was given is ever changed.

    Attributes:
        base: the base model.
        photos: on the UNet's device, as :meth:`Photos.for_training` gives them; :meth:`prepare` may add masks.
        templates: prompts, each with "{}" once where the word stands.
        seed: of noise, timesteps and templates.
        notes: what a person should know already, each one sentence.
    """

    base: BaseModel
    photos: Photos
    templates: Sequence[str]
    seed: int
    notes: tuple[str, ...]

    def passes(self) -> Mapping[Phase, int]:
        """How many passes :meth:`prepare` ("subject") and :meth:`concept` ("word") make; left out: none."""

    def weights(self) -> Mapping[str, TrainedWeight]:
        """The UNet's weights that are not the base's, by canonical name; asked for once. They are lent to the UNet
        whenever one of the methods below is called, and while its result's backward pass runs."""

    def groups(self) -> list[dict[str, Any]]:
        """What trains besides, as an optimizer's parameter groups; empty: nothing."""

    def prepare(self, on_pass: OnPass) -> None:
        """What has to be known before the first step; ``on_pass`` is called after every pass."""

    def losses(self, sample: DiffusionSample) -> Tensor:
        """The loss ``(B,)`` of every sample."""

    def context(self, z: Tensor, t: Tensor) -> Context:
        """The first template with the word as it is now ``(1, L, D)``, for ``z`` ``(1, 4, h, w)`` at ``t`` ``(1,)``."""

    def concept(self, on_pass: OnPass) -> Concept:
        """What was learned; called without gradients. The loop adds losses and notes."""


class Method(Protocol):
    """A way to learn a concept.

    Attributes:
        name: its short name, as concepts and files carry it ("e4t").
    """

    name: str

    def trained(self, settings: Any, unet: UNet) -> Trained:
        """How much it trains on a UNet, for the choice of a memory plan."""

    def start(self, base: BaseModel, photos: Photos, settings: Any, seed: int, trigger: str, plan: MemoryPlan) -> Run:
        """Check what is given and make a run, whose masters live where the plan says."""
