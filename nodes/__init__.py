"""The nodes an artist sees, one file each."""

from __future__ import annotations

try:
    from comfy_api.latest import ComfyExtension, io
except ImportError as error:
    raise ImportError(
        "comfyui-e4t needs a ComfyUI with the V3 node API (comfy_api.latest, ComfyUI 0.30 or newer): update ComfyUI."
    ) from error

from .host.compatibility import check_comfyui
from .host.model_folders import make_folder, register_folders

check_comfyui()

from .apply_concept import ApplyConcept
from .export_concept import ExportConcept
from .host.learning.free_memory import free_with_node_cache
from .host.learning.result_store import STORE
from .host.node_text import clear_at_every_new_job
from .hypernetwork import LearnHyperNetwork
from .learning_nodes import LEARNING_NODES
from .load_concept import LoadConcept
from .load_domain import LoadDomain
from .mix_concepts import MixConcepts
from .personalize import Personalize
from .regions import Regions
from .save_concept import SaveConcept
from .settings import Settings


class E4TExtension(ComfyExtension):
    """Tells ComfyUI which nodes there are."""

    async def on_load(self) -> None:
        register_folders()
        make_folder()
        free_with_node_cache(STORE)
        clear_at_every_new_job()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [
            LoadDomain,
            Personalize,
            Settings,
            LearnHyperNetwork,
            *LEARNING_NODES,
            SaveConcept,
            LoadConcept,
            ApplyConcept,
            MixConcepts,
            ExportConcept,
            Regions,
        ]


async def comfy_entrypoint() -> E4TExtension:
    """What ComfyUI calls after importing the pack."""
    return E4TExtension()
