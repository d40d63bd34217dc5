"""E4T's HyperNetwork variant (the paper's sections 4 and 5): the weight offsets are made from what CLIP says of the photo.

It needs a domain that was pre-trained so (``offset_form`` "hypernetwork", see ``offset_forms``). Such a domain knows the photo before
any tuning: with 0 steps the concept is what it says at once, which is the paper's outlook. With steps it is tuned as E4T is.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from ...memory_plan import FAST, MemoryPlan
from ...photos import Photos
from ...run import BaseModel
from ...settings import setting
from .domain import Domain
from .method import E4T, E4TRun
from .settings import TuningSettings
from .weight_offsets import HYPERNETWORK


class OffsetFormError(ValueError):
    """A domain whose offsets do not depend on the photo; the message says what to use instead."""


@dataclass(frozen=True)
class HyperNetworkSettings(TuningSettings):
    """Settings of the HyperNetwork.

    Raises:
        ValueError: a value is out of range; the message names it.
    """

    steps: int = setting(
        0,
        "Optimizer steps. 0: at once, what the domain says of the photo. More are tuned as E4T is.",
        least=0,
        most=100_000,
    )

    @classmethod
    def of(cls, preset: TuningSettings, steps: int = 0) -> HyperNetworkSettings:
        """A domain's preset with other steps."""
        return cls(**{**asdict(preset), "steps": steps})


class HyperNetwork(E4T):
    """The method, for one domain."""

    name = "hypernetwork"
    Settings = HyperNetworkSettings

    def start(
        self,
        base: BaseModel,
        photos: Photos,
        settings: TuningSettings,
        seed: int,
        trigger: str,
        plan: MemoryPlan = FAST,
    ) -> E4TRun:
        """A run, as E4T's.

        Raises:
            OffsetFormError: the domain's offsets do not depend on the photo.
        """
        check_form(self.domain)
        return super().start(base, photos, settings, seed, trigger, plan)


def check_form(domain: Domain) -> None:
    """Check that a domain's offsets are made from the photo.

    Raises:
        OffsetFormError: they are not.
    """
    info = domain.info
    if info.offset_form != HYPERNETWORK:
        raise OffsetFormError(
            f"The domain {info.name!r} has the same weight offsets for every photo ({info.offset_form!r}), so it has no answer at"
            " once: use E4T Personalize, or a domain that was trained with training.offset_form = hypernetwork."
        )
