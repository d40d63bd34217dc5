"""The mini world's image backbone: an open_clip vision tower, small enough to travel inside a domain checkpoint."""

from __future__ import annotations

LAYERS, WIDTH = 6, 128
# open_clip's vision configuration; ``e4t_core.methods.e4t.clip_backbone`` builds the very same module from it.
VISION_CONFIG: dict[str, int | float] = {
    "image_size": 128,
    "layers": LAYERS,
    "width": WIDTH,
    "head_width": 32,
    "patch_size": 16,
    "mlp_ratio": 4.0,
}
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
READ_BLOCKS = tuple(range(1, LAYERS + 1))
