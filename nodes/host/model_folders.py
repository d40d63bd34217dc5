"""Where the pack's files are: flat folders that ComfyUI knows, also from extra_model_paths.yaml."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import folder_paths

DOMAINS = "e4t_domains"
EXTENSION = ".safetensors"


class ModelFileError(ValueError):
    """A model file that was not found, or a name that leads out of its folder."""


def register_folders() -> None:
    """Register ``models/e4t_domains``; a folder from extra_model_paths.yaml stays and comes first."""
    default = os.path.join(folder_paths.models_dir, DOMAINS)
    folder_paths.add_model_folder_path(DOMAINS, default)
    # A YAML entry makes the key with an empty set of extensions, which would list every file.
    paths, _ = folder_paths.folder_names_and_paths[DOMAINS]
    folder_paths.folder_names_and_paths[DOMAINS] = (paths, {EXTENSION})


def make_folder() -> None:
    """Make ``models/e4t_domains``, so that there is a place to put a file; where that cannot be, its absence is told later."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.join(folder_paths.models_dir, DOMAINS), exist_ok=True)


def embeddings_folder() -> Path:
    """``e4t`` in ComfyUI's first folder of embeddings, where stock prompts find ``embedding:e4t/<name>``; made if need be.

    Raises:
        ModelFileError: it cannot be made.
    """
    return _made(Path(folder_paths.get_folder_paths("embeddings")[0]) / "e4t")


def loras_folder() -> Path:
    """ComfyUI's first folder of LoRAs; made if need be.

    Raises:
        ModelFileError: it cannot be made.
    """
    return _made(Path(folder_paths.get_folder_paths("loras")[0]))


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"The folder {folder} could not be made ({error}): check that its parent may be written to."
        ) from error
    return folder


def domain_names() -> list[str]:
    """Names of the domain files, for the node's combo."""
    register_folders()
    return folder_paths.get_filename_list(DOMAINS)


def domain_path(name: str) -> Path:
    """Path of a domain file by its combo name.

    Raises:
        ModelFileError: it is not there, or the name leads out of the folder; the message says where it belongs and
            how to come by one.
    """
    register_folders()
    folders = folder_paths.get_folder_paths(DOMAINS)
    # A workflow that was saved on Windows has backslashes between folders.
    parts = re.split(r"[/\\]", name)
    # Judged by the name alone: a file in the folder may be a link to where a person keeps models.
    leads_out = os.path.isabs(name) or os.path.splitdrive(name)[0] or parts[0] == "" or ".." in parts
    proper = name.endswith(EXTENSION) and "\0" not in name and not leads_out
    for folder in folders if proper else ():
        for path in (os.path.join(folder, name), os.path.join(folder, *parts)):
            if os.path.isfile(path):
                return Path(path)
    raise ModelFileError(
        f"Domain file {name!r} was not found in {' or '.join(folders)}: put it there (convert a published checkpoint,"
        " pre-train one, or try the mini world), then press R to refresh."
    )
