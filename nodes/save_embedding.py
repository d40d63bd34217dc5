"""The node "Save E4T Embedding": a learned word as a file that every stock prompt reads."""

from __future__ import annotations

import re

from comfy_api.latest import io

from ..e4t_core.files.stock_embedding import save_embedding
from .host.model_folders import embeddings_folder
from .host.node_text import show_text
from .host.sampling.held_concept import HeldConcept
from .sockets import ConceptIO

# What a prompt's grammar and every file system take.
PLAIN = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9_\-.]{0,98}[A-Za-z0-9_\-])?")


class SaveEmbedding(io.ComfyNode):
    """Keeps a learned word: ``embedding:e4t/<name>`` then works in every prompt, also without this pack."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TSaveEmbedding",
            display_name="Save E4T Embedding",
            category="E4T",
            description="Saves a learned word to models/embeddings/e4t, where every stock prompt finds it as embedding:e4t/<name>.",
            search_aliases=["save embedding", "textual inversion", "save concept"],
            inputs=[
                ConceptIO.Input("concept", tooltip="From a node that learns a photo."),
                io.String.Input(
                    "name",
                    default="my_word",
                    tooltip="Of the file: letters, digits, _ - and dots. The prompt is then embedding:e4t/ and this name.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip="Replace a file of that name. Off: the new file gets a number.",
                ),
            ],
            outputs=[io.String.Output(display_name="name")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return True if name is None else _fault(name) or True

    @classmethod
    def execute(cls, concept: HeldConcept, name: str, overwrite: bool = False) -> io.NodeOutput:
        if fault := _fault(name):
            raise ValueError(fault)
        path = save_embedding(embeddings_folder(), name, concept.concept, overwrite)
        prompt = f"embedding:e4t/{path.stem}"
        word_only = "" if not concept.differences and not concept.shared else " (the word alone, without the weights)"
        told = f"Saved as {path.name}{word_only}. In prompts: {prompt}"
        show_text(told)
        return io.NodeOutput(prompt, ui={"text": [told]})


def _fault(name: str) -> str:
    """What is wrong with a file's name, as one sentence; empty if nothing is."""
    if PLAIN.fullmatch(name):
        return ""
    return (
        f"The name {name[:60]!r} cannot be a file's: use letters, digits, _ - and dots, at most 100, no dot at its"
        " ends."
    )
