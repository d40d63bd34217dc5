"""The node "Load E4T Concept"."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..e4t_core.concept import Concept
from ..e4t_core.files.concept_file import ConceptFileError, load_concept, read_concept_info, weights_path
from ..e4t_core.files.concept_info import RECIPE, WORD, ConceptInfo
from ..e4t_core.methods.e4t.domain import Domain
from .host.learning.domain_at_hand import DomainMissingError, find_domain
from .host.live_view import CONCEPT, card
from .host.model_folders import ModelFileError, concept_names, concept_path, weights_folders
from .host.node_text import show_text
from .sockets import ConceptIO


class LoadConcept(io.ComfyNode):
    """Brings a saved concept back; Apply E4T Concept then draws it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TLoadConcept",
            display_name="Load E4T Concept",
            category="E4T",
            description="Loads a concept from models/embeddings/e4t. Wire it into Apply E4T Concept.",
            search_aliases=["load concept", "load face", "reuse"],
            inputs=[
                io.Combo.Input(
                    "concept_name",
                    options=concept_names(),
                    tooltip="Files that Save E4T Concept wrote to models/embeddings/e4t.",
                ),
            ],
            outputs=[ConceptIO.Output(display_name="E4T_CONCEPT"), io.String.Output(display_name="trigger")],
            # What it says is then in the history of a job, too, for which ComfyUI had its result.
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, concept_name: str | None = None) -> bool | str:
        # Named here, so that our sentence comes in place of core's "Value not in list". A linked value is None here.
        if concept_name is None:
            return True
        try:
            read_concept_info(concept_path(concept_name))
        except (ModelFileError, ConceptFileError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, concept_name: str | None = None, **_linked: Any) -> Any:
        if concept_name is None:
            return None
        try:
            path = concept_path(concept_name)
            info = read_concept_info(path)
            files = [path, *([weights_path(path, info, weights_folders())] if info.weights_file else [])]
            return [str(_state(file)) for file in files]
        except (ModelFileError, ConceptFileError, OSError):
            return concept_name

    @classmethod
    def execute(cls, concept_name: str) -> io.NodeOutput:
        missing: list[str] = []

        def domain_of(concept: Concept) -> Domain | None:
            try:
                return find_domain(concept)
            except DomainMissingError as error:
                missing.append(f"{error} Until then its word is fixed, and less of a likeness.")
                return None

        concept, info = load_concept(concept_path(concept_name), weights_folders(), domain_of)
        said = [_card(info), *missing, *info.notes]
        show_text("\n".join(said))
        return io.NodeOutput(concept, concept.trigger, ui={"text": said, CONCEPT: card(concept, info.title, info.body)})


def _state(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_mtime_ns, found.st_size


def _card(info: ConceptInfo) -> str:
    """What was loaded, in one line."""
    kept = {
        RECIPE: ", a recipe: Apply E4T Concept learns it again",
        WORD: ", its fixed word alone" if info.domain_fingerprint else "",
    }.get(info.body, "")
    base = f", on {info.base_name}" if info.base_name else ""
    domain = f", domain {info.domain_name}" if info.domain_name else ""
    return f"{info.trigger}: {info.title} ({info.method}{domain}{base}{kept})"
