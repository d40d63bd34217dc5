"""What every memory plan would need to learn one photo on this machine, beside what is free; nothing is learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from e4t_core.files.domain_file import load_domain
from e4t_core.memory_need import candidates, need
from e4t_core.memory_plan import PLANS
from e4t_core.methods.e4t.method import E4T

from .imported import pack

GB = 1e9
PIXELS_PER_LATENT = 8


def memory_plans(checkpoint: Path, domain_file: Path) -> dict[str, Any]:
    """For each plan the largest micro-batch that fits, or else the smallest there is, with its need in GB.

    Raises:
        TooLittleMemoryError: none fits; the message says what is needed and free.
    """
    import comfy.sd

    memory = pack("nodes.host.learning.memory")
    compute = pack("nodes.host.networks.compute_type")
    with torch.inference_mode():
        model, _, _, _ = comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)
        unet = pack("nodes.host.networks.base_model").ComfyUNet(model, compute.compute_type(model.load_device))
        domain = load_domain(domain_file)
        settings = domain.info.preset
        cells = (domain.info.image_size // PIXELS_PER_LATENT) ** 2
        work = memory.work_of(E4T(domain), settings, unet, cells)
        free = memory.Free.now(unet.device)
    rows = []
    for name in PLANS:
        plans = [plan for plan in candidates(name, 0, settings.batch) if plan.name == name]
        fitting = [plan for plan in plans if free.holds(need(plan, work))]
        plan = (fitting or plans[-1:])[0]
        wanted, whole = need(plan, work), need(plans[0], work)
        rows.append(
            {
                "plan": name,
                "fits": bool(fitting),
                "micro-batch": plan.micro_batch,
                "card": wanted.card / GB,
                "RAM": wanted.ram / GB,
                "whole batch": (whole.card + (whole.ram if free.ram is None else 0)) / GB,
            }
        )
    # The plan that would be taken; raises where there is none.
    chosen = memory.plans_that_fit(settings, work, free)[0]
    return {
        "device": unet.device.type,
        "free": free.card / GB,
        "total": free.total / GB,
        "free RAM": None if free.ram is None else free.ram / GB,
        "batch": settings.batch,
        "steps": settings.steps,
        "rows": rows,
        "chosen": f"{chosen.told()}, {free.told(need(chosen, work))}",
    }
