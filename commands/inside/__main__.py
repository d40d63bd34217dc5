"""``python -m commands.inside FOLDER``: a check's tasks that need ComfyUI's own modules; ``commands/check/child.py`` starts it."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from commands.check.child import Found, answer

from .imported import import_comfyui

PACKAGES = ("torch", "safetensors", "open_clip_torch", "numpy")


def here(job: Found) -> Found:
    """What this ComfyUI is, and what it would compute with."""
    import_comfyui(Path(job["comfyui"]), job["arguments"])
    import comfy.model_management as management
    import comfyui_version

    from .imported import pack

    device = management.get_torch_device()
    learns = pack("nodes.host.networks.compute_type").compute_type(device)
    return {
        "ComfyUI": comfyui_version.__version__,
        "Python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "device": management.get_torch_device_name(device),
        "memory of the device": f"{management.get_total_memory(device) / 1e9:.1f} GB",
        "learns in": str(learns).removeprefix("torch."),
        **_driver(),
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _driver() -> dict[str, str]:
    import torch

    found = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    return {name: value for name, value in found.items() if value}


def memory(job: Found) -> Found:
    """What every memory plan would need."""
    import_comfyui(Path(job["comfyui"]), job["arguments"])
    from .memory_plans import memory_plans

    return memory_plans(Path(job["checkpoint"]), Path(job["domain"]))


def parity(job: Found) -> Found:
    """What ComfyUI's networks say; computed on the processor, as the other side is."""
    import_comfyui(Path(job["comfyui"]), job["arguments"])
    import comfy.model_management as management
    import torch

    from commands.check.measured import save_side
    from e4t_core.files.domain_file import load_domain

    from .comfy_side import comfy_side

    management.cpu_state = management.CPUState.CPU
    domain = load_domain(job["domain"]) if job["domain"] else None
    # The text encoder as it is in the file, too: ComfyUI would round it.
    loader: dict[str, Any] = {"te_model_options": {"dtype": torch.float32}}
    side = comfy_side(Path(job["checkpoint"]), lambda _unet, _text: domain, getattr(torch, job["dtype"]), loader)
    save_side(Path(job["values"]), side)
    return {"seconds": side.seconds, "peak": peak()}


def vision(job: Found) -> Found:
    """What the image backbone reads from the picture."""
    import_comfyui(Path(job["comfyui"]), job["arguments"])
    import comfy.model_management as management

    from commands.check.measured import Side, save_side
    from commands.check.vision import pictures_for
    from e4t_core.files.domain_file import load_domain

    from .comfy_side import stock_vectors
    from .imported import pack

    management.cpu_state = management.CPUState.CPU
    domain = load_domain(job["domain"])
    given = pictures_for(domain.info.backbone)
    if job["clip_vision"]:
        found = stock_vectors(domain.info.backbone, Path(job["clip_vision"]), given)
    else:
        features = pack("nodes.host.networks.backbone").image_features
        found = features(domain, None, given.movedim(1, -1))
    save_side(Path(job["vectors"]), Side({}, {"image features": found}, 0.0))
    return {}


def peak() -> float | None:
    """The largest resident size of this process so far in GB (1e9 bytes); none where the system does not tell."""
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


if __name__ == "__main__":
    # Nothing is fetched.
    os.environ["HF_HUB_OFFLINE"] = "1"
    answer(Path(sys.argv[1]), {"here": here, "memory": memory, "parity": parity, "vision": vision})
