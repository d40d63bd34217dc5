"""Canonical (diffusers) parameter names of an SD 1.x / 2.x UNet with native (latent-diffusion) names.

Derived from the names alone, so it holds for any number of levels, residual blocks and transformers, the mini world's
included. Native: ``input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight``; canonical:
``down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight``.
"""

from __future__ import annotations

from collections.abc import Iterable

INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "op": "conv",
}
ATTENTION_PROJECTION = (
    r"(down_blocks\.\d{1,3}|mid_block|up_blocks\.\d{1,3})\.attentions\.\d{1,3}\.transformer_blocks\.\d{1,3}"
    r"\.attn[12]\.to_[qkv]\.weight"
)
"""Regular expression of the canonical names of the matrices that weight offsets change."""
OUTER = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def canonical_names(native: Iterable[str]) -> dict[str, str]:
    """Native name -> canonical name, for every parameter of a UNet.

    Args:
        native: all parameter names, without a "model.diffusion_model." prefix.

    Raises:
        ValueError: a name that no SD 1.x or 2.x UNet has.
    """
    names = list(native)
    layers = _layers(names)
    prefixes = dict(OUTER) | _down_blocks(layers) | _middle_block(layers) | _up_blocks(layers)
    result = {}
    for name in names:
        prefix = next((p for p in _prefixes_of(name) if p in prefixes), None)
        if prefix is None:
            raise ValueError(f"The UNet has a parameter {name!r} that no Stable Diffusion 1.x or 2.x UNet has.")
        rest = name[len(prefix) + 1 :]
        for old, new in INNER.items():
            if rest.startswith(f"{old}."):
                rest = new + rest[len(old) :]
        result[name] = f"{prefixes[prefix]}.{rest}"
    return result


def _prefixes_of(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:length]) for length in (3, 2) if length < len(parts)]


def _layers(names: list[str]) -> dict[str, str]:
    """Prefix of every layer inside a block ("input_blocks.1.1") -> what it is."""
    kinds = {}
    for name in names:
        parts = name.split(".")
        depth = 2 if parts[0] == "middle_block" else 3
        prefix, rest = ".".join(parts[:depth]), parts[depth:]
        if rest and rest[0] in ("in_layers", "out_layers", "emb_layers", "skip_connection"):
            kinds[prefix] = "resnet"
        elif rest and rest[0] in ("norm", "proj_in", "transformer_blocks", "proj_out"):
            kinds[prefix] = "attention"
        elif rest and rest[0] == "op":
            kinds[prefix] = "downsample"
        elif rest and rest[0] == "conv":
            kinds[prefix] = "upsample"
    return kinds


def _block(layers: dict[str, str], folder: str) -> list[tuple[str, str]]:
    found = [(prefix, kind) for prefix, kind in layers.items() if prefix.startswith(f"{folder}.")]
    return sorted(found, key=lambda layer: int(layer[0].rsplit(".", 1)[1]))


def _count(layers: dict[str, str], folder: str) -> int:
    return 1 + max((int(prefix.split(".")[1]) for prefix in layers if prefix.startswith(f"{folder}.")), default=-1)


def _down_blocks(layers: dict[str, str]) -> dict[str, str]:
    prefixes, level, block = {}, 0, 0
    for index in range(1, _count(layers, "input_blocks")):
        lowered = False
        for prefix, kind in _block(layers, f"input_blocks.{index}"):
            if kind == "downsample":
                prefixes[prefix] = f"down_blocks.{level}.downsamplers.0"
                lowered = True
            else:
                prefixes[prefix] = f"down_blocks.{level}.{kind}s.{block}"
        level, block = (level + 1, 0) if lowered else (level, block + 1)
    return prefixes


def _middle_block(layers: dict[str, str]) -> dict[str, str]:
    prefixes: dict[str, str] = {}
    counts = {"resnet": 0, "attention": 0}
    for prefix, kind in _block(layers, "middle_block"):
        prefixes[prefix] = f"mid_block.{kind}s.{counts[kind]}"
        counts[kind] += 1
    return prefixes


def _up_blocks(layers: dict[str, str]) -> dict[str, str]:
    prefixes, level, block = {}, 0, 0
    for index in range(_count(layers, "output_blocks")):
        raised = False
        for prefix, kind in _block(layers, f"output_blocks.{index}"):
            if kind == "upsample":
                prefixes[prefix] = f"up_blocks.{level}.upsamplers.0"
                raised = True
            else:
                # An attention is numbered like the residual block it follows, also where an earlier one has none.
                prefixes[prefix] = f"up_blocks.{level}.{kind}s.{block}"
        level, block = (level + 1, 0) if raised else (level, block + 1)
    return prefixes
