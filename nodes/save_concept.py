"""The node "Save E4T Concept": a learned concept as files that are kept and shared."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from comfy_api.latest import io

from ..e4t_core.concept import Concept
from ..e4t_core.files.concept_compact import lacks_domain, with_untuned
from ..e4t_core.files.concept_info import BODIES, COMPACT, EXACT, RECIPE, RECOVERABLE, WORD
from ..e4t_core.files.concept_saving import About, save_concept
from ..e4t_core.files.file_name import fault_of
from ..e4t_core.version import VERSION
from .host.learning.compact_fit import can_fit, fitted
from .host.learning.domain_at_hand import find_domain
from .host.learning.pictures import thumbnail_uri
from .host.model_folders import concept_places
from .host.node_text import show_text
from .host.progress_bar import advance
from .sockets import ConceptIO


class SaveConcept(io.ComfyNode):
    """Keeps a concept: Load E4T Concept brings it back, and embedding:e4t/<name> works in every stock prompt."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TSaveConcept",
            display_name="Save E4T Concept",
            category="E4T",
            description="Saves what was learned to models/embeddings/e4t. Load E4T Concept brings it back, tomorrow or on another"
            " computer.",
            search_aliases=["save concept", "save embedding", "save face", "keep", "share"],
            # Widget values are stored by position: once a version is out, only append.
            inputs=[
                ConceptIO.Input(
                    "concept", tooltip="From a node that learns a photo, or from Mix or Apply E4T Concept."
                ),
                io.String.Input(
                    "name",
                    default="my_concept",
                    tooltip="Of the file: letters, digits, _ - and dots. Stock prompts then know it as embedding:e4t/ and this"
                    " name.",
                ),
                io.Combo.Input(
                    "keeps",
                    options=list(BODIES),
                    default=EXACT,
                    optional=True,
                    tooltip=f"{EXACT}: all of it, without loss; a second file in models/e4t_concepts (1.7 GB for Stable Diffusion"
                    f" 1.5). {COMPACT}: nearly all of it in one small file (10 MB). {RECIPE}: what learns it again in seconds, 200 KB; the photo can be recovered from it. {WORD}: the"
                    " fixed word alone, as a plain embedding.",
                ),
                io.String.Input(
                    "title", default="", optional=True, tooltip="What people call it. Empty: the file's name."
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip="Replace a concept of that name. Off: the new file gets a number.",
                ),
                io.Image.Input(
                    "preview",
                    optional=True,
                    tooltip="A picture for model libraries, better a drawn one than the photo. It is stored only where"
                    " store_preview is on.",
                ),
                io.Boolean.Input(
                    "store_preview",
                    default=False,
                    optional=True,
                    tooltip="Store the preview in the file, where everybody who gets the file sees it.",
                ),
                io.String.Input("author", default="", optional=True, advanced=True, tooltip="Who made it."),
                io.String.Input(
                    "license", default="", optional=True, advanced=True, tooltip="What others may do with it."
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip=f"For {COMPACT}: the MODEL that the photo was learned on. The small copy is then tuned to draw what"
                    " the concept draws, which takes about as long as learning did.",
                ),
                io.Clip.Input("clip", optional=True, tooltip=f"For {COMPACT}: the CLIP that belongs to that MODEL."),
            ],
            outputs=[io.String.Output(display_name="name")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return True if name is None else fault_of(name) or True

    @classmethod
    def execute(
        cls,
        concept: Concept,
        name: str,
        keeps: str = EXACT,
        title: str = "",
        overwrite: bool = False,
        preview: Any = None,
        store_preview: bool = False,
        author: str = "",
        license: str = "",
        model: Any = None,
        clip: Any = None,
    ) -> io.NodeOutput:
        about = About(
            title=title.strip(),
            author=author.strip(),
            license=license.strip(),
            created=datetime.now().astimezone().isoformat(timespec="seconds"),
            pack_version=VERSION,
            thumbnail=thumbnail_uri(preview) if store_preview and preview is not None else "",
        )
        if keeps == COMPACT and lacks_domain(concept) and (domain := find_domain(concept)) is not None:
            concept = with_untuned(concept, domain)
        told = []
        if keeps == COMPACT and model is not None and clip is not None and can_fit(concept):
            concept, lost = fitted(concept, model, clip)
            told.append(f"What the small copy predicts is off by {lost:.0%} of what learning changed.")
        elif keeps == COMPACT and can_fit(concept):
            told.append("Wire in MODEL and CLIP to keep more of the likeness.")
        saved = save_concept(concept_places(), name, concept, keeps, about, overwrite, advance)
        said = [f"Saved as {saved.path.name} ({size(saved.bytes)}). In stock prompts: embedding:e4t/{saved.path.stem}"]
        if saved.weights is not None:
            said.append(f"To share it, give both files: {saved.path} and {saved.weights}.")
        said += told
        said += [RECOVERABLE] if keeps == RECIPE else []
        if store_preview and preview is None:
            said.append("store_preview is on, but no preview is wired in.")
        show_text("\n".join(said))
        return io.NodeOutput(f"embedding:e4t/{saved.path.stem}", ui={"text": said})


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e6:.1f} MB" if count >= 1e6 else f"{count / 1e3:.0f} KB"
