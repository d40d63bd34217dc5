"""The node "Load E4T Domain"."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..e4t_core.files.domain_file import DomainFileError, load_domain, read_domain_info
from ..e4t_core.methods.e4t.domain_info import base_note
from .host.learning.request import LoadedDomain
from .host.model_folders import ModelFileError, domain_names, domain_path
from .host.node_text import show_text
from .sockets import DomainIO


class LoadDomain(io.ComfyNode):
    """A domain (faces, cats, a style): what was learned about its kind, before any photo of yours."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TLoadDomain",
            display_name="Load E4T Domain",
            category="E4T",
            description="Loads a domain checkpoint from models/e4t_domains.",
            search_aliases=["e4t", "domain", "personalization", "face domain"],
            inputs=[
                io.Combo.Input(
                    "domain_name",
                    options=domain_names(),
                    tooltip="Files in models/e4t_domains. A domain fits the base model family it was trained with.",
                ),
                io.ClipVision.Input(
                    "clip_vision",
                    optional=True,
                    tooltip="The image backbone (CLIP-ViT-H), for domain files that do not bring their own.",
                ),
            ],
            outputs=[DomainIO.Output(display_name="domain")],
        )

    @classmethod
    def validate_inputs(cls, domain_name: str | None = None) -> bool | str:
        # Named here, so that our sentence comes in place of core's "Value not in list". A linked value is None here.
        if domain_name is None:
            return True
        try:
            read_domain_info(domain_path(domain_name))
        except (ModelFileError, DomainFileError) as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, domain_name: str | None = None, **_linked: Any) -> Any:
        if domain_name is None:
            return None
        try:
            state = domain_path(domain_name).stat()
        except (ModelFileError, OSError):
            return domain_name
        return (domain_name, state.st_mtime_ns, state.st_size)

    @classmethod
    def execute(cls, domain_name: str, clip_vision: Any = None) -> io.NodeOutput:
        domain = load_domain(domain_path(domain_name))
        note = base_note(domain.info)
        if note:
            show_text(note)
        return io.NodeOutput(LoadedDomain(domain, clip_vision), ui={"text": [note]} if note else None)
