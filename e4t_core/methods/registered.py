"""The methods there are: nodes, commands, files and tests take them from these lists."""

from __future__ import annotations

from ..concept import Concept
from ..loop_settings import LoopSettings
from ..run import Method
from ..sibling import Sibling
from .dreambooth import DreamBooth
from .dreambooth_ti import DreamBoothTI
from .e4t.domain import Domain
from .e4t.hypernetwork import HyperNetwork
from .e4t.method import E4T
from .extended_textual_inversion import ExtendedTextualInversion
from .lora import LoRA
from .perfusion import Perfusion
from .textual_inversion import TextualInversion

SIBLINGS: tuple[type[Sibling], ...] = (
    TextualInversion,
    ExtendedTextualInversion,
    Perfusion,
    LoRA,
    DreamBooth,
    DreamBoothTI,
)
"""Those that need no domain file. The node of each is called :func:`node_id`, in ComfyUI's workflows and for its help page."""

OF_DOMAINS: tuple[type[E4T], ...] = (E4T, HyperNetwork)
"""Those that need one."""

SETTINGS: dict[str, type[LoopSettings]] = {
    **{kind.name: kind.Settings for kind in OF_DOMAINS},
    **{kind.name: kind.Settings for kind in SIBLINGS},
}
"""Name of a method -> its settings."""

TITLES: dict[str, str] = {
    E4T.name: "E4T",
    HyperNetwork.name: "HyperNetwork",
    **{kind.name: kind.title for kind in SIBLINGS},
}
"""Name of a method -> what people call it."""


def node_id(kind: type[Sibling]) -> str:
    """What workflows call the node that learns by a method."""
    return f"E4T{kind.__name__}"


def method_of(concept: Concept, domain: Domain | None) -> Method:
    """The method that learned a concept, for learning it again; with a domain for those that need one.

    Raises:
        ValueError: its file says a method that it cannot be of.
    """
    if domain is not None:
        return HyperNetwork(domain) if concept.method == HyperNetwork.name else E4T(domain)
    for kind in SIBLINGS:
        if kind.name == concept.method:
            return kind(concept.word)
    raise ValueError(
        f"{concept.trigger!r} was learned by {concept.method!r}, but its file names no domain: save the concept again."
    )
