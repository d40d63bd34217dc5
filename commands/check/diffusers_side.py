"""``python -m commands.check.diffusers_side FOLDER``: what diffusers' networks and open_clip say; ``child.py`` starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .child import Found, answer
from .measured import Side, measure, save_side
from .vision import pictures_for


def parity(job: Found) -> Found:
    """What the loader of pre-training gives, measured in float32."""
    from commands.base.diffusers_base import load_base
    from e4t_core.files.domain_file import load_domain

    base = load_base(job["checkpoint"])
    side = measure(base.unet, base.text, base.encode, load_domain(job["domain"]) if job["domain"] else None)
    save_side(Path(job["values"]), side)
    return {"seconds": side.seconds}


def vision(job: Found) -> Found:
    """What open_clip's network reads from the picture."""
    from e4t_core.files.domain_file import load_domain
    from e4t_core.methods.e4t.clip_backbone import ClipBackbone, read_backbone_weights

    domain = load_domain(job["domain"])
    info = domain.info.backbone
    state = domain.backbone_state
    if state is None:
        state = read_backbone_weights(Path(job["clip_vision"]), info)
    found = ClipBackbone(info, state).cls_features(pictures_for(info))
    save_side(Path(job["vectors"]), Side({}, {"image features": found}, 0.0))
    return {}


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    answer(Path(sys.argv[1]), {"parity": parity, "vision": vision})
