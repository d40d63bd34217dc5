"""The node "Export E4T Concept": a learned concept as files that stock nodes and other programs read."""

from __future__ import annotations

from comfy_api.latest import io

from ..e4t_core.files.stock_export import Exported, Folders, export_bundle, export_pair
from ..e4t_core.files.stock_lora import LEAST_ERROR, StockLora, exact_lora, low_rank_lora
from ..e4t_core.weight_changes import TotalDifferences
from .host.learning.work import Work
from .host.model_folders import embeddings_folder, loras_folder
from .host.networks.base_model import ComfyUNet
from .host.networks.compute_type import eigenvalue_device
from .host.node_text import show_text
from .host.sampling.held_concept import HeldConcept
from .host.sampling.lost_effect import LostEffect, lost_effect
from .save_embedding import _fault
from .sockets import ConceptIO

PAIR, BUNDLE, EXACT = "LoRA and embedding", "bundle (one file)", "exact LoRA and embedding"
PROMPT = "embedding:e4t/"


class ExportConcept(io.ComfyNode):
    """Takes a concept where this pack is not: a stock LoRA for the weights, a stock embedding for the word."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TExportConcept",
            display_name="Export E4T Concept",
            category="E4T",
            description="Saves a concept as a LoRA and an embedding that stock nodes and other programs read, without this pack.",
            search_aliases=["export lora", "save lora", "extract lora", "share concept"],
            inputs=[
                ConceptIO.Input("concept", tooltip="From a node that learns a photo."),
                io.Model.Input("model", tooltip="The base that it is drawn on; concepts that it holds are left out."),
                io.Clip.Input("clip", tooltip="Its text encoder: what the export loses is measured with it."),
                io.String.Input(
                    "name",
                    default="my_concept",
                    tooltip="Of both files: letters, digits, _ - and dots. In prompts: embedding:e4t/ and this name.",
                ),
                io.Combo.Input(
                    "form",
                    options=[PAIR, BUNDLE, EXACT],
                    default=PAIR,
                    tooltip=f"'{PAIR}': two files; diffusers reads them too. '{BUNDLE}': both in one file, which lies in models/loras"
                    f" and has a second name in models/embeddings/e4t. '{EXACT}': nothing is lost, and the file is large.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    optional=True,
                    tooltip="Replace files of that name. Off: the new ones get a number.",
                ),
                io.Float.Input(
                    "error",
                    default=0.1,
                    min=LEAST_ERROR,
                    max=1.0,
                    step=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="How far the LoRA's weight changes may be from the concept's, relative to them. Smaller: a larger file.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=1280,
                    optional=True,
                    advanced=True,
                    tooltip="One rank for all matrices, in place of the error. 0: every matrix gets the rank that the error asks for.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt")],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, name: str | None = None) -> bool | str:
        return True if name is None else _fault(name) or True

    @classmethod
    def execute(
        cls,
        concept: HeldConcept,
        model: io.Model.Type,
        clip: io.Clip.Type,
        name: str,
        form: str,
        overwrite: bool = False,
        error: float = 0.1,
        rank: int = 0,
    ) -> io.NodeOutput:
        pass
