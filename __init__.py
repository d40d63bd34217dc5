"""ComfyUI's door to the pack. Without ComfyUI (tests, command line) it is an importable empty package."""

from importlib.util import find_spec

# Help pages of the nodes: web/docs/<node id>.md.
WEB_DIRECTORY = "./web"

if __package__ and find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
