"""The node "Export E4T Concept": a learned concept as files that stock nodes and other programs read."""

from __future__ import annotations

from comfy_api.latest import io

from ..e4t_core.concept import Concept
from ..e4t_core.files.file_name import checked_name, fault_of
from ..e4t_core.files.stock_export import Exported, export_bundle, export_pair
from ..e4t_core.files.stock_lora import ERROR, LEAST_ERROR, StockLora
from .host.exporting.lora import is_another_base, make_lora
from .host.exporting.lost_effect import LostEffect, lost_effect
from .host.model_folders import stock_folders
from .host.node_text import show_text
from .sockets import ConceptIO

PAIR, BUNDLE, EXACT = "LoRA and embedding", "bundle (one file)", "exact LoRA and embedding"
MB = 2**20


class ExportConcept(io.ComfyNode):
    """Takes a concept where this pack is not: a stock LoRA for its weights, a stock embedding for its word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TExportConcept",
            display_name="Export E4T Concept",
            category="E4T",
            description="Saves a concept as a LoRA and an embedding, which stock nodes and other programs read without this pack.",
            search_aliases=["export lora", "save lora", "extract lora", "share concept"],
            inputs=[
                ConceptIO.Input(
                    "concept", tooltip="From a node that learns a photo, or from Load, Mix or Apply E4T Concept."
                ),
                io.Model.Input("model", tooltip="The base that it is drawn on. Concepts that it holds are left out."),
                io.Clip.Input("clip", tooltip="The base's text encoder: with it is measured what the files lose."),
                io.String.Input(
                    "name",
                    default="my_concept",
                    tooltip="Of both files: letters, digits, _ - and dots. In prompts: embedding: and this name.",
                ),
                io.Combo.Input(
                    "form",
                    options=[PAIR, BUNDLE, EXACT],
                    default=PAIR,
                    tooltip=f"'{PAIR}': two small files, for diffusers too. '{BUNDLE}': both in one file, in models/loras, with a"
                    f" second name in models/embeddings. '{EXACT}': the weights lose nothing, and the file is half as large"
                    " as the base, or more.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip="Replace files of that name. Off: the new ones get a number.",
                ),
                io.Float.Input(
                    "error",
                    default=ERROR,
                    min=LEAST_ERROR,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How far the LoRA's weight changes may be from the concept's, layer by layer, as a share of them. Smaller: a"
                    " larger file.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1280,
                    optional=True,
                    advanced=True,
                    tooltip="One rank for all matrices, in place of the error. 0: each matrix has the rank that the error asks for.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return True if name is None else fault_of(name) or True

    @classmethod
    def execute(
        cls,
        concept: Concept,
        model: io.Model.Type,
        clip: io.Clip.Type,
        name: str,
        form: str,
        overwrite: bool = False,
        error: float = ERROR,
        rank: int = 0,
    ) -> io.NodeOutput:
        checked_name(name)
        # Diffusers reads no norms and biases, and no bundles either.
        lora = make_lora(concept, model, form == EXACT, error, rank, vectors=form == BUNDLE)
        lost = lost_effect(model, clip, concept, lora.tensors)
        write = export_bundle if form == BUNDLE else export_pair
        made = write(stock_folders(), name, concept, lora, _measured(form, lost), overwrite)
        told = _told(made, form, lora, lost)
        if is_another_base(concept, model):
            told.append(
                f"{concept.trigger} was learned on another base than this MODEL; what is said here holds for this one."
            )
        show_text("\n".join(told))
        return io.NodeOutput(made.prompt, ui={"text": told})


def _measured(form: str, lost: LostEffect) -> dict[str, str]:
    """What the LoRA's metadata says beside the error of its weights."""
    said = {"e4t.form": form, "e4t.effect_lost": f"{lost.weights:.6f}"}
    return said if lost.refinement is None else {**said, "e4t.refinement_lost": f"{lost.refinement:.6f}"}


def _told(made: Exported, form: str, lora: StockLora, lost: LostEffect) -> list[str]:
    """The lines that the node shows."""
    both = f"{made.lora.name} in {made.lora.parent} and in {made.embedding.parent}"
    if form == BUNDLE:
        both += ", as a copy: this disk gives no second names" if made.copied else ", two names of one file"
    weights = "exactly the concept's" if lora.error == 0 else f"rank {lora.rank}, weights off by {_percent(lora.error)}"
    lines = [
        f"Saved {both}.",
        f"Load LoRA: {made.lora.name}, strength 1. In prompts: {made.prompt}",
        f"LoRA: {lora.size / MB:.1f} MB, {weights}.",
        f"Of what its weights move in noise predictions, {_percent(lost.weights)} is lost.",
    ]
    if lost.refinement is not None:
        lines.append(
            f"The word is fixed here; refined at every step, it moves them by another {_percent(lost.refinement)}."
        )
    return lines


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
