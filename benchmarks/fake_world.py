"""Base models at their true shapes without their memory: ComfyUI's networks on fake tensors, as on a machine with a card.

Inside :func:`fake_card` nothing is allocated and nothing computed; PyTorch only follows shapes (``FakeTensorMode``). The device
"cpu" stands for the graphics card, because PyTorch chooses attention that does not keep its matrix there, and "meta" for RAM:
networks lie in RAM until something is moved to the card, and what the product moves to "cpu" by that name goes to RAM.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from e4t_core.run import BaseModel

from . import host
from .random_checkpoint import Family, text_state, unet_state

CARD, RAM = torch.device("cpu"), torch.device("meta")
NOT = ("aten::logical_not", "aten::bitwise_not")
BAD = ("aten::isnan", "aten::isinf", "aten::ne")


class _Answers(TorchDispatchMode):
    """What a program wants to know of a fake number: it is 1 if it may have a fraction, 0 if it counts.

    Whatever is asked of fake numbers, all is well: they are finite, equal, in range. What follows from such an answer by "not"
    is the opposite.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        try:
            out = func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            of = args[0]
            if name in ("aten::_local_scalar_dense", "aten::is_nonzero"):
                number = 1.0 if of.is_floating_point() else 0
                return self._answer(of) if name.endswith("is_nonzero") or of.dtype is torch.bool else number
            if name == "aten::equal":
                return True
            raise
        if isinstance(out, FakeTensor) and out.dtype is torch.bool:
            given = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dtype is torch.bool]
            answer = self._answer(given[0]) if given else name not in BAD
            out.answer = not answer if name in NOT else answer  # type: ignore[attr-defined]
        return out

    def _answer(self, tensor: Tensor) -> bool:
        return getattr(tensor, "answer", True)


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """``Tensor.to``; where the product names "cpu", it means RAM."""
    if args and args[0] == "cpu" and isinstance(args[0], str):
        args = (RAM, *args[1:])
    return Tensor.to(tensor, *args, **kwargs)


# What fake tensors do not have or, being on no real card, do not do as the product means it.
_ADDED: dict[str, Callable[..., Any]] = {
    # Bytes to be hashed.
    "numpy": lambda tensor: np.zeros(0, np.uint8),
    "data_ptr": lambda tensor: tensor.untyped_storage()._cdata + tensor.storage_offset() * tensor.element_size(),
}
_TO_RAM: dict[str, Callable[..., Any]] = {"to": _to, "cpu": lambda tensor: Tensor.to(tensor, RAM)}


def _apply(module: nn.Module, change: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """``nn.Module._apply`` with new parameters; PyTorch's own changes fake ones in place, which they do not allow."""
    for part in module.modules() if recurse else [module]:
        for name, value in part._parameters.items():
            if value is not None:
                with torch.no_grad():
                    part._parameters[name] = nn.Parameter(change(value), value.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else change(buffer)
    return module


@contextmanager
def set_to(owner: Any, **values: Any) -> Iterator[None]:
    """Attributes of a module or class have these values until it ends."""
    before = {name: owner.__dict__.get(name, owner) for name in values}
    try:
        for name, value in values.items():
            setattr(owner, name, value)
        yield
    finally:
        for name, value in before.items():
            if value is owner:
                delattr(owner, name)
            else:
                setattr(owner, name, value)


@contextmanager
def fake_card(ram: torch.device = RAM) -> Iterator[None]:
    """Within it, everything is fake.

    Args:
        ram: :data:`CARD`: there is no card, all memory is one.
    """
    with ExitStack() as changes:
        changes.enter_context(set_to(nn.Module, _apply=_apply))
        changes.enter_context(set_to(FakeTensor, **_ADDED, **({} if ram == CARD else _TO_RAM)))
        # It copies the storage itself, which is none of a fake tensor's.
        changes.enter_context(set_to(host.pack("nodes.host.networks.text_encoder"), copy_with_strides=Tensor.clone))
        for name, module in list(sys.modules.items()):
            # What a plan leaves in RAM.
            if name.endswith("e4t_core.memory_plan"):
                changes.enter_context(set_to(module, RAM=ram))
        changes.enter_context(_mode())
        changes.enter_context(_Answers())
        yield


@cache
def _mode() -> FakeTensorMode:
    """The one of this process: what was made under another one would be taken for real, and faked again."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@dataclass(frozen=True)
class FakeBase:
    """A base model as ComfyUI's loader gives it, in RAM."""

    model: Any
    clip: Any

    def networks(self, dtype: torch.dtype) -> BaseModel:
        """Its networks as the core's, as learning makes them where the UNet computes in a number type.

        Call it outside :func:`fake_card`.
        """
        unet = host.pack("nodes.host.networks.base_model").ComfyUNet(self.model, dtype)
        encoder = host.pack("nodes.host.networks.text_encoder").ComfyTextEncoder
        return BaseModel(unet, encoder(self.clip, rounded=dtype == torch.bfloat16), "fake")

    def weights(self) -> list[Tensor]:
        """All that it holds."""
        return [*self.model.model.diffusion_model.parameters(), *self.clip.cond_stage_model.parameters()]


def family_state(family: Family) -> dict[str, Tensor]:
    """A whole checkpoint but for the VAE; call it inside :func:`fake_card`, or it is made."""
    generator = torch.Generator()
    return unet_state(family, generator) | text_state(family, generator)


def file_state(path: Path) -> dict[str, Tensor]:
    """A checkpoint of a file's shapes, in float16."""
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        return {name: torch.empty(file.get_slice(name).get_shape(), dtype=torch.float16) for name in names}


def load(
    make_state: Callable[[], Mapping[str, Tensor]], dtype: torch.dtype = torch.float16, ram: torch.device = RAM
) -> FakeBase:
    """A base read by ComfyUI's own loader; call it outside :func:`fake_card`."""
    import comfy.model_base
    import comfy.sd

    places = {"load_device": CARD, "offload_device": ram, "dtype": dtype}
    with warnings.catch_warnings(), fake_card(ram):
        # It says of each weight that is read into RAM that nothing is read.
        warnings.filterwarnings("ignore", "for .* copying from a non-meta parameter")
        state = dict(make_state())
        model, clip, _, _ = comfy.sd.load_state_dict_guess_config(
            state, output_vae=False, model_options=places, te_model_options={**places, "initial_device": ram}
        )
        model.model.to(ram)
        clip.cond_stage_model.to(ram)
    # Its noise schedule is looked at number by number.
    base = model.model
    base.model_sampling = comfy.model_base.model_sampling(base.model_config, base.model_type)
    return FakeBase(model, clip)
