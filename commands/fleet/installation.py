"""Which ComfyUI the seats of a fleet run."""

from __future__ import annotations

import argparse

from commands.comfyui.own_server import Installation, absolute_program


def installed(options: argparse.Namespace) -> Installation:
    """The ComfyUI that the command names.

    Raises:
        BatchError: it is not on this machine, where that is to run it.
    """
    base = options.base_directory
    installation = Installation(
        options.comfyui.absolute(),
        base.absolute() if base is not None else None,
        absolute_program(options.python),
        options.cpu,
        tuple(options.comfyui_argument),
    )
    if options.address is None:
        installation.check()
    return installation
