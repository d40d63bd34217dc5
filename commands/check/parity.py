"""Whether ComfyUI's networks and diffusers' are one base model to E4T, with these weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from commands.comfyui.own_server import Installation

from .child import answer_of, ask
from .faults import CheckError
from .given import Given, Usable
from .measured import Side, difference, load_side, odd_facts, share
from .parts import Part

TOLERANCE = 1e-3
"""Of the root mean square of each value. The same float32 products in another order differ by some 1e-5 of it; a weight that is
misnamed, transposed or rounded to half precision by 1e-2 and more."""
INSIDE, OUTSIDE = "commands.inside", "commands.check.diffusers_side"


def inside(installation: Installation, given: Given, usable: Usable, folder: Path) -> None:
    """All that ComfyUI's own modules are asked; :func:`answer_of` gives the tasks' answers.

    Args:
        installation: the ComfyUI.
        given, usable: the files.
        folder: for the answers.

    Raises:
        CheckError: its process cannot be started, or was ended.
    """
    (folder / "base").mkdir()
    tasks = ["here"]
    tasks += ["memory"] if usable.learns else []
    tasks += ["parity"] if usable.checkpoint else []
    tasks += ["vision"] if usable.backbone and usable.domain is not None else []
    arguments = ["--base-directory", str(folder / "base"), *(["--cpu"] if installation.cpu else [])]
    job = {
        "tasks": tasks,
        "comfyui": str(installation.folder.absolute()),
        "arguments": [*arguments, *installation.arguments],
        **_files(given, usable),
        "values": str(folder / "values.safetensors"),
        "vectors": str(folder / "vectors.safetensors"),
    }
    ask(INSIDE, job, folder, installation.python)


def _files(given: Given, usable: Usable) -> dict[str, Any]:
    weighs_in = usable.domain is not None and usable.fits
    return {
        "checkpoint": str(given.checkpoint.absolute()),
        "domain": str(given.domain.absolute()) if weighs_in else "",
        "clip_vision": "" if given.clip_vision is None or _is_inside(usable) else str(given.clip_vision.absolute()),
        "dtype": usable.dtype,
    }


def _is_inside(usable: Usable) -> bool:
    return usable.domain is not None and usable.domain.backbone.weights_inside


def compare(part: Part, given: Given, usable: Usable, folder: Path) -> None:
    """Asks diffusers' networks, and compares.

    Args:
        part: gets figures and faults.
        given, usable: the files.
        folder: with the answers of :func:`inside`.

    Raises:
        CheckError: nothing can be compared.
    """
    if not usable.diffusers:
        raise CheckError("The checkpoint cannot be compared with diffusers': part 1 says why.")
    if usable.domain is None or not usable.fits:
        part.said.append("The base model is compared without the domain, which cannot be used with it.")
    told = answer_of(folder, "parity")
    stock = load_side(folder / "values.safetensors")
    reads = usable.backbone and usable.domain is not None and usable.fits
    with tempfile.TemporaryDirectory(prefix="e4t_check_") as name:
        other = Path(name)
        job = {
            "tasks": ["parity", *(["vision"] if reads else [])],
            **_files(given, usable),
            "values": str(other / "values.safetensors"),
            "vectors": str(other / "vectors.safetensors"),
        }
        ask(OUTSIDE, job, other)
        answer_of(other, "parity")
        ours = load_side(other / "values.safetensors")
        part.said.append(_measured(ours, stock, told.get("peak")))
        _judge(part, ours, stock)
        if reads:
            with part.noting():
                answer_of(folder, "vision")
                answer_of(other, "vision")
                _judge(part, load_side(other / "vectors.safetensors"), load_side(folder / "vectors.safetensors"))


def _measured(ours: Side, stock: Side, peak: float | None) -> str:
    held = "" if peak is None else f"; ComfyUI's side held up to {peak:.1f} GB"
    return (
        f"Both sides computed in float32 on the processor, diffusers in {ours.seconds:.1f} s and ComfyUI in"
        f" {stock.seconds:.1f} s{held}. Largest differences may be up to {TOLERANCE:g} of a value's root mean square."
    )


def _judge(part: Part, ours: Side, stock: Side) -> None:
    odd = odd_facts(ours, stock)
    if odd:
        part.faults.append(f"The two sides do not agree on: {', '.join(odd)}.")
    rows: list[Sequence[str]] = []
    for name, value in ours.values.items():
        other = stock.values[name]
        found = share(value, other)
        size = float(value.square().mean().sqrt())
        rows.append(
            (
                name,
                "×".join(map(str, value.shape)) or "1",
                f"{size:.3g}",
                f"{difference(value, other):.1e}",
                f"{found:.1e}",
            )
        )
        # Written so that what is no number is a fault.
        if not found <= TOLERANCE:
            part.faults.append(
                f"{name} differs by {found:.1e} of its size, more than {TOLERANCE:g}: with this checkpoint concepts and domains do"
                " not move between ComfyUI and diffusers."
            )
    part.table(("value", "shape", "root mean square", "largest difference", "as a share"), rows)
