"""Layers of a text encoder that add nothing are left out: the same numbers in a sixth of the time for a small one.

ComfyUI builds every SD 1.x text encoder with CLIP-L's twelve layers, so a shorter one is stored with layers whose last
linears are zero. ``x + 0`` is ``x``, bit for bit, but computing that zero is most of what such an encoder costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

LAYERS = "transformer.text_model.encoder.layers"
LAST_LINEARS = ("self_attn.out_proj", "mlp.fc2")


def idle_layers(weights: Mapping[str, Tensor], prefix: str = "") -> tuple[int, ...]:
    """Numbers of the layers that add nothing.

    Args:
        weights: effective weights of the text encoder by name; what is missing counts as not zero.
        prefix: of the names, before ``transformer.``.
    """
    start = f"{prefix}{LAYERS}."
    numbers = {int(name.removeprefix(start).split(".")[0]) for name in weights if name.startswith(start)}
    ends = [f"{linear}.{part}" for linear in LAST_LINEARS for part in ("bias", "weight")]  # a bias tells soonest
    return tuple(
        number
        for number in sorted(numbers)
        if all((name := f"{start}{number}.{end}") in weights and not weights[name].any() for end in ends)
    )


def _pass_through(x: Tensor, *_args: object, **_kwargs: object) -> Tensor:
    return x


@contextmanager
def left_out(network: nn.Module, layers: Sequence[int]) -> Iterator[None]:
    """Within it, these layers of a ComfyUI text encoder hand on what they get; afterwards it is as it was."""
    modules: list[nn.Module] = [network.get_submodule(f"{LAYERS}.{number}") for number in layers]
    try:
        for module in modules:
            module.forward = _pass_through
        yield
    finally:
        for module in modules:
            module.__dict__.pop("forward", None)
