"""The methods that are compared, each with a fair setting, and what their concepts take on disk.

A sibling's rate and number of steps come from the log of ``benchmarks.compare_grid``, which chose them on validation
individuals. They are the mini world's: its base is small and trained from scratch, so its rates are not those of Stable Diffusion, and
the pack's defaults stay what the papers and the field say. E4T's rate is chosen by the same rule, because its preset's was
chosen on the 320-channel networks.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from e4t_core.concept import Concept
from e4t_core.loop_settings import LoopSettings
from e4t_core.methods.e4t.hypernetwork import HyperNetwork
from e4t_core.methods.e4t.method import E4T
from e4t_core.methods.lora import LAYERS
from e4t_core.methods.registered import SETTINGS, TITLES
from e4t_core.weight_changes import Full, LowRank
from miniworld.presets import PRESETS

from .arms import WEIGHTS

LOG = Path(__file__).parent / "compare_grid.csv"
WORD, ORACLE = "the domain word", "oracle caption"
E4T_POINTS, E4T_RUNS, PRESET_STEPS = (0, 2, 5, 15, 30), (5, 15), 15
SHORT, LONG = 60, 240
POINTS = (15, SHORT, LONG)
"""Numbers of steps of a sibling's curve; the grid tries the last two."""
PRIOR_PICTURES = 48


@dataclass(frozen=True)
class Trial:
    """How a method is tried.

    Attributes:
        method: its name.
        rates: of the grid, evenly spaced on a logarithmic scale. Those that the authors or the field state for Stable Diffusion
            lie within or, for weights, below: this base needs more (E4T's rate is six times the paper's here).
        fixed: settings that differ from the defaults.
        runs: numbers of steps of short and of long runs.
    """

    method: str
    rates: tuple[float, ...]
    fixed: dict[str, Any] = field(default_factory=dict)
    runs: tuple[int, int] = (SHORT, LONG)

    def settings(self, rate: float) -> Any:
        """Its settings at a rate."""
        return SETTINGS[self.method](learning_rate=rate, **self.fixed)


def preset_values() -> dict[str, Any]:
    """The shipped domain's preset without its rate."""
    return {name: value for name, value in asdict(PRESETS[WEIGHTS["face"]]).items() if name != "learning_rate"}


# Captions of this world know one beginning of a photo's prompt, which the domain's templates are as well. A batch of 4 for all of
# them (2 photos and 2 prior pictures make one): here a sample is what costs, and more steps of fewer samples learn more than
# fewer steps of more.
_COMMON: dict[str, Any] = {"templates": "a photo of {}"}
_FOUR = _COMMON | {"batch": 4}
_PRIOR = _COMMON | {"batch": 2, "prior_pictures": PRIOR_PICTURES}
_WORDS, _WEIGHTS = (1e-3, 3e-3, 1e-2, 3e-2), (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
SIBLINGS = (
    Trial("textual_inversion", _WORDS, _FOUR),
    Trial("dreambooth", _WEIGHTS, _PRIOR),
    Trial("lora", (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), _FOUR),
    Trial("extended_textual_inversion", _WORDS, _FOUR),
    Trial("perfusion", _WORDS, _FOUR),
    Trial("dreambooth_ti", _WEIGHTS, _PRIOR),
)
"""E4T's, in the order in which the comparison needs them most."""
OURS = Trial(E4T.name, (2.5e-5, 5e-5, 1e-4, 2e-4, 4e-4), preset_values(), E4T_RUNS)
TRIALS = (OURS, *SIBLINGS)


@dataclass(frozen=True)
class Arm:
    """What is compared.

    Attributes:
        name: in the table.
        method: that learns; empty: words alone.
        settings: of the method; their steps do not matter.
        points: numbers of steps after which pictures are drawn, ascending.
        chosen: the one of them that stands in the table.
        photos: of each individual.
        domain_file: of a domain that is not the shipped one; empty: the shipped one, where the method needs any.
    """

    name: str
    method: str = ""
    settings: LoopSettings | None = None
    points: tuple[int, ...] = (0,)
    chosen: int = 0
    photos: int = 1
    domain_file: str = ""

    def at_chosen(self) -> Arm:
        """The same without a curve."""
        return replace(self, points=(self.chosen,))

    def untuned(self) -> Arm:
        """What the domain says at once."""
        return replace(self, name=f"{self.name}, not tuned", points=(0,), chosen=0)

    def multi(self, photos: int) -> Arm:
        """The same without a curve, with several photos."""
        return replace(self.at_chosen(), name=f"{self.name}, {photos} photos", photos=photos)


@dataclass(frozen=True)
class Tried:
    """A line of the grid's log.

    Attributes:
        method, rate, steps: what was tried.
        individuals: how many it was tried on.
        named, prompt: NAMED and PROMPT, the mean of both judges.
        seconds: of one core, for each individual.
    """

    method: str
    rate: float
    steps: int
    individuals: int
    named: float
    prompt: float
    seconds: float

    @property
    def score(self) -> float:
        """The harmonic mean of NAMED and PROMPT, 0 where either is not above 0."""
        low, high = sorted((self.named, self.prompt))
        return 2 * low * high / (low + high) if low > 0 else 0.0


def chosen(tried: Sequence[Tried], method: str) -> Tried:
    """The rate and the steps that a method is compared with: the highest score; of equal ones the fewest steps.

    Raises:
        ValueError: it was not tried.
    """
    own = [one for one in tried if one.method == method]
    if not own:
        raise ValueError(f"{LOG.name} holds no line of {method!r}: run python -m benchmarks.compare_grid first.")
    return max(own, key=lambda one: (one.score, -one.steps))


def read_log(path: Path = LOG) -> list[Tried]:
    """All lines of the grid's log; none if there is no log."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [
            Tried(
                row["method"],
                float(row["rate"]),
                int(row["steps"]),
                int(row["individuals"]),
                float(row["NAMED"]),
                float(row["PROMPT"]),
                float(row["seconds"]),
            )
            for row in csv.DictReader(file)
        ]


def e4t_arm(log: Sequence[Tried] = ()) -> Arm:
    """E4T as it was chosen, or by the shipped domain's preset if it was not tried; its first point is the untuned encoder."""
    own = [one for one in log if one.method == E4T.name]
    if not own:
        return Arm(TITLES[E4T.name], E4T.name, PRESETS[WEIGHTS["face"]], E4T_POINTS, PRESET_STEPS)
    best = chosen(own, E4T.name)
    return Arm(TITLES[E4T.name], E4T.name, OURS.settings(best.rate), E4T_POINTS, best.steps)


def hypernetwork_arm(domain_file: str) -> Arm:
    """The HyperNetwork variant with a domain of its own; its first point is the instant mode."""
    given = {
        name: getattr(PRESETS[WEIGHTS["face"]], name) for name in ("learning_rate", "encoder_rate", "regularization")
    }
    settings = HyperNetwork.Settings(stop_feature_gradient=True, **given)
    return Arm(
        TITLES[HyperNetwork.name], HyperNetwork.name, settings, (0, PRESET_STEPS), PRESET_STEPS, domain_file=domain_file
    )


def all_arms(methods: Sequence[str], log: Sequence[Tried], hypernetwork: str = "") -> list[Arm]:
    """The words alone, E4T, the siblings of these names by the grid's log, and the HyperNetwork if a domain file is given."""
    ours = e4t_arm(log)
    arms = [Arm(WORD), Arm(ORACLE), ours, ours.untuned()]
    for sibling in SIBLINGS:
        if sibling.method in methods:
            best = chosen(log, sibling.method)
            arms.append(Arm(TITLES[sibling.method], sibling.method, sibling.settings(best.rate), POINTS, best.steps))
    if not hypernetwork:
        return arms
    hyper = hypernetwork_arm(hypernetwork)
    return [*arms, hyper, hyper.untuned()]


def bytes_here(concept: Concept) -> int:
    """What a concept of the mini world's narrow networks takes: words in float32, differences as they are stored, factors in
    float16, E4T's encoder and features in float16. A domain's offsets are the domain file's."""
    taken = concept.embedding.nbytes
    taken += sum(one.nbytes for one in concept.attention.tensors()) if concept.attention else 0
    for change in concept.weights:
        if isinstance(change, Full):
            taken += change.stored.values.nbytes
        elif isinstance(change, LowRank):
            taken += 2 * (change.up.numel() + change.down.numel())
    predictor: Any = concept.predictor
    if predictor is not None:
        taken += 2 * sum(value.numel() for value in predictor.network.state_dict().values())
        taken += 2 * predictor.clip_features.numel()
    return taken


@cache
def bytes_at_sd15(method: str) -> int:
    """What a concept takes at Stable Diffusion 1.5's shapes, with the pack's default ranks and vectors."""
    from .compact_forms import EXACT, sd15_bytes, sd15_shapes

    shapes, width, word = sd15_shapes(), 768, 4 * 768
    layers = sum(name.endswith("attn2.to_k.weight") for name in shapes)
    everything = 2 * sum(map(math.prod, shapes.values()))
    adapted = [shape for name, shape in shapes.items() if LAYERS["attention"].search(name) and len(shape) > 1]
    rank = SETTINGS["lora"]().rank  # type: ignore[attr-defined]
    return {
        "textual_inversion": word,
        "extended_textual_inversion": layers * word,
        # The word, i*, its direction and the key, and a value for each layer.
        "perfusion": (layers + 4) * 4 * width,
        "lora": 2 * rank * sum(shape[0] + math.prod(shape[1:]) for shape in adapted),
        "dreambooth": everything,
        "dreambooth_ti": everything + word,
        "e4t": sd15_bytes(EXACT),
        "hypernetwork": sd15_bytes(EXACT),
    }[method]
