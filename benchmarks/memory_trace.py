"""Follows the memory of every tensor that is made, on fake tensors as on real ones: who made it, when, and when it was freed.

PyTorch hands every operation to a dispatch mode. :class:`MemoryTrace` looks at the storages that come out of it, writes down
each new one with the place in the code that asked for it, and writes down its end when nobody holds it any more. All else is
read off that log afterwards: peaks, what they consisted of, and what PyTorch's allocator on a graphics card would have reserved.

It sees what operations give back. What a kernel takes for itself while it runs (a convolution's workspace, a copy in another
layout) is not seen.

Each device has a ledger of its own. Inside ``FakeTensorMode``, where nothing is really allocated, "cpu" can stand for the card
and "meta" for RAM, so that both are seen and so is what is copied between them.
"""

from __future__ import annotations

import sys
import weakref
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOUSE = Path(__file__).resolve().parents[1]
TORCH = Path(torch.__file__).parent
# Where PyTorch hands an operation to a dispatch mode.
PASSED_OVER = (
    *("torch/_dynamo/", "torch/_compile.py", "torch/utils/_python_dispatch.py", "torch/_ops.py"),
    *("benchmarks/fake_world.py", "benchmarks/operations.py"),
)
# What PyTorch's allocator for CUDA does (c10/cuda/CUDACachingAllocator.cpp): sizes are rounded up to 512 bytes. Blocks up to
# 1 MiB are cut from segments of 2 MiB, those below 10 MiB from segments of 20 MiB, and larger ones get a segment of their own
# in steps of 2 MiB. What is left of a block is used again, if it is at least 512 bytes of a small and 1 MiB of a large one.
ROUNDING = 512
SMALL, LARGE, STEP, MIDDLE = 2**20, 10 * 2**20, 2 * 2**20, 20 * 2**20


@dataclass(eq=False)
class Block:
    """The memory of one storage.

    Attributes:
        device: "cpu", "meta", ...
        size: in bytes, as asked for.
        born: number of the event that made it.
        place: "file:function" (its qualified name) of the innermost code of this project that asked for it ("" outside).
        inner: the innermost code at all, PyTorch's and ComfyUI's included.
        backward: number of the backward pass that asked for it; 0: none did.
        outlived: whether it was held beyond that pass.
        died: number of the event that freed it; none while it lives.
        label: what it was called by :meth:`MemoryTrace.label`.
    """

    device: str
    size: int
    born: int
    place: str
    inner: str
    backward: int
    outlived: bool = False
    died: int | None = None
    label: str = ""


def rounded(size: int) -> int:
    """Bytes of a card that an allocation takes."""
    return -(-size // ROUNDING) * ROUNDING


@dataclass(frozen=True)
class Peak:
    """The most memory of a device at one time.

    Attributes:
        size: in bytes, each block rounded as on a card.
        blocks: what lived then.
    """

    size: int
    blocks: tuple[Block, ...]

    def by(self, category: Callable[[Block], str]) -> Counter[str]:
        """Bytes of each category."""
        found: Counter[str] = Counter()
        for block in self.blocks:
            found[category(block)] += rounded(block.size)
        return found


class MemoryTrace(TorchDispatchMode):
    """While it is entered, every tensor's memory is followed. Enter it after ``FakeTensorMode``.

    Args:
        limits: bytes that a device has; what would need more raises ``torch.OutOfMemoryError``, as on a card of that size.
    """

    def __init__(self, limits: dict[str, int] | None = None) -> None:
        super().__init__()
        self.limits = dict(limits or {})
        self.blocks: list[Block] = []
        self.now: Counter[str] = Counter()
        self.copied: Counter[tuple[str, str]] = Counter()
        """Bytes copied from one device to another, up to now."""
        self._events = 0
        self._held: dict[int, tuple[weakref.ref[Any], Block]] = {}
        # The autograd engine's frame and number, and what its pass made that lives.
        self._pass: tuple[FrameType | None, int] = (None, 0)
        self._passes = 0
        self._made: set[Block] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.namespace == "prim":
            return out  # fake tensors ask for their device by an operation of its own, all the time
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self._count_copies(func, args, made)
        new = [tensor for tensor in made if _key(tensor) not in self._held]
        if new:
            # A view of what was made before this began is no new memory.
            given = {_key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
            for tensor in new:
                if _key(tensor) not in given or func._schema.name == "aten::set_":
                    self._follow(tensor)
        return out

    def free(self, device: str) -> int:
        """Bytes that a limited device has left."""
        return self.limits[device] - self.now[device]

    def follow(self, tensors: Iterable[Tensor], label: str) -> None:
        """Count the memory of tensors that were made before, too."""
        kept = list(tensors)
        for tensor in kept:
            self._follow(tensor)
        self.label(kept, label)

    def label_all(self, device: str, label: str) -> None:
        """Call all that lives on a device something, see :meth:`label`."""
        for _, block in self._held.values():
            if block.device == device:
                block.label = label

    def label(self, tensors: Iterable[Tensor], label: str) -> None:
        """Call the memory of living tensors something, for :meth:`Peak.by`: it counts for their whole life, the past included."""
        for tensor in tensors:
            held = self._held.get(_key(tensor))
            if held is not None:
                held[1].label = label

    def peak(self, device: str) -> Peak:
        """The most memory of a device since the start."""
        size, highest, when = 0, 0, 0
        for event, _, change in self._log(device):
            size += change
            if size > highest:
                highest, when = size, event
        alive = [b for b in self.blocks if b.device == device and b.born <= when and (b.died is None or b.died > when)]
        return Peak(highest, tuple(alive) if highest else ())

    def reserved(self, device: str) -> int:
        """The most bytes that PyTorch's allocator would have held for a device, if it never had to give any back."""
        segments = Segments()
        for _, block, change in self._log(device):
            if change > 0:
                segments.allocate(block, change)
            else:
                segments.free(block)
        return segments.size

    def _log(self, device: str) -> Iterator[tuple[int, int, int]]:
        """(event, number of the block, change in bytes) in the order of events."""
        log = []
        for number, block in enumerate(self.blocks):
            if block.device == device and block.size:
                log.append((block.born, number, rounded(block.size)))
                if block.died is not None:
                    log.append((block.died, number, -rounded(block.size)))
        return iter(sorted(log))

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        device = tensor.device.type
        block = self._born(device, storage.nbytes())
        self._held[key] = weakref.ref(storage, lambda _: self._died(key)), block
        if self.now[device] > self.limits.get(device, self.now[device]):
            size, limit = rounded(block.size), self.limits[device]
            # The frame would keep alive whatever the failed pass held.
            self._pass = None, 0
            raise torch.OutOfMemoryError(
                f"out of memory: tried to allocate {size / 1e9:.3f} GB, while {(self.now[device] - size) / 1e9:.3f} of"
                f" {limit / 1e9:.3f} GB of {device} were allocated"
            )

    def _born(self, device: str, size: int) -> Block:
        self._events += 1
        place, inner, engine = _asked_for(sys._getframe(1))
        if engine is not self._pass[0]:
            for made in self._made:
                made.outlived = True
            self._made.clear()
            self._passes += engine is not None
            self._pass = engine, self._passes if engine is not None else 0
        block = Block(device, size, self._events, place, inner, self._pass[1])
        self.blocks.append(block)
        if engine is not None:
            self._made.add(block)
        self.now[device] += rounded(size)
        return block

    def _died(self, key: int) -> None:
        _, block = self._held.pop(key)
        self._end(block)

    def _end(self, block: Block) -> None:
        self._events += 1
        block.died = self._events
        self._made.discard(block)
        self.now[block.device] -= rounded(block.size)

    def _count_copies(self, func: Any, args: Any, made: list[Tensor]) -> None:
        """A copy to another device and another type is converted where it comes from, and travels in the new type."""
        name = func._schema.name
        if name == "aten::_to_copy":
            pairs = [(made[0], args[0])]
        elif name == "aten::copy_":
            pairs = [(args[0], args[1])]
        elif name in ("aten::_foreach_copy_", "aten::_foreach_copy"):
            pairs = list(zip(args[0], args[1], strict=True))
        else:
            return
        for to, source in pairs:
            origin, goal = source.device.type, to.device.type
            if origin == goal:
                continue
            size = to.numel() * to.element_size()
            self.copied[origin, goal] += size
            if to.dtype != source.dtype:
                self._end(self._born(origin, size))


@dataclass
class Segments:
    """PyTorch's allocator for CUDA, as far as sizes go: blocks are cut from segments, joined again and given to others.

    Attributes:
        size: bytes of all segments.
    """

    size: int = 0
    # For small and large blocks: (size, segment, offset) of what is free, in order.
    _free: dict[bool, list[tuple[int, int, int]]] = field(default_factory=lambda: {False: [], True: []})
    # Where the free ones begin and end, to join neighbors.
    _begins: dict[tuple[int, int], int] = field(default_factory=dict)
    _ends: dict[tuple[int, int], int] = field(default_factory=dict)
    _used: dict[int, tuple[bool, int, int, int]] = field(default_factory=dict)
    _segments: int = 0

    def allocate(self, number: int, size: int) -> None:
        """The smallest free block that is large enough, or a new segment."""
        small = size <= SMALL
        free = self._free[small]
        found = bisect_left(free, (size, -1, -1))
        if found < len(free):
            length, segment, offset = free[found]
            self._take(small, length, segment, offset)
        else:
            length = STEP if small else MIDDLE if size < LARGE else -(-size // STEP) * STEP
            segment, offset = self._segments, 0
            self._segments += 1
            self.size += length
        if length - size >= (ROUNDING if small else SMALL + 1):
            self._give(small, length - size, segment, offset + size)
            length = size
        self._used[number] = small, length, segment, offset

    def free(self, number: int) -> None:
        """The block and its free neighbors become one free block."""
        small, length, segment, offset = self._used.pop(number)
        after = self._begins.get((segment, offset + length))
        if after is not None:
            self._take(small, after, segment, offset + length)
            length += after
        before = self._ends.get((segment, offset))
        if before is not None:
            offset -= before
            self._take(small, before, segment, offset)
            length += before
        self._give(small, length, segment, offset)

    def _give(self, small: bool, length: int, segment: int, offset: int) -> None:
        insort(self._free[small], (length, segment, offset))
        self._begins[segment, offset] = self._ends[segment, offset + length] = length

    def _take(self, small: bool, length: int, segment: int, offset: int) -> None:
        free = self._free[small]
        del free[bisect_left(free, (length, segment, offset))]
        del self._begins[segment, offset], self._ends[segment, offset + length]


def _key(tensor: Tensor) -> int:
    """Which storage is behind a tensor."""
    return tensor.untyped_storage()._cdata


_PLACES: dict[CodeType, tuple[bool, str]] = {}


def _place(code: CodeType) -> tuple[bool, str]:
    """Whether it is this project's, and "file:function", from the project's, PyTorch's or a package's folder on."""
    if code not in _PLACES:
        path = Path(code.co_filename)
        ours = path.is_relative_to(HOUSE) and not path.relative_to(HOUSE).parts[0].startswith(".")
        if ours:
            name = path.relative_to(HOUSE).as_posix()
        elif path.is_relative_to(TORCH.parent):
            name = path.relative_to(TORCH.parent).as_posix()
        else:
            name = "/".join(path.parts[-3:])
        function = code.co_qualname  # type: ignore[attr-defined]  # Python 3.11's, the least that dev.py takes
        _PLACES[code] = ours, f"{name}:{function}"
    return _PLACES[code]


def _asked_for(frame: FrameType | None) -> tuple[str, str, FrameType | None]:
    """The project's place, the innermost place, and the frame of the backward pass that is under way, if one is."""
    ours = inner = ""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_engine_run_backward":
            return ours or _caller(frame), inner, frame
        if code.co_filename != __file__ and code.co_name != "__torch_dispatch__":
            is_ours, place = _place(code)
            if not place.startswith(PASSED_OVER):
                inner = inner or place
                # Hooks of a backward pass are the project's code again, and what they make is theirs.
                ours = ours or (place if is_ours else "")
        frame = frame.f_back
    return ours, inner, None


def _caller(frame: FrameType | None) -> str:
    """The project's innermost place."""
    while frame is not None:
        is_ours, place = _place(frame.f_code)
        if is_ours:
            return place
        frame = frame.f_back
    return ""
