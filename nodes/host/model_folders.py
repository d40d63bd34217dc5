"""Where the pack's files are: flat folders that ComfyUI knows, also from extra_model_paths.yaml."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

import folder_paths

from ...e4t_core.files.concept_saving import Places
from ...e4t_core.files.stock_export import Folders

DOMAINS, WEIGHTS, PRIOR = "e4t_domains", "e4t_concepts", "e4t_prior"
CONCEPTS = "e4t"
"""Folder of concept files among ComfyUI's embeddings, where stock prompts find ``embedding:e4t/<name>``."""
EXTENSION = ".safetensors"


class ModelFileError(ValueError):
    """A model file that was not found, or a name that leads out of its folder."""


def register_folders() -> None:
    """Register ``models/e4t_domains``, ``models/e4t_concepts`` and ``models/e4t_prior``; folders from extra_model_paths.yaml stay and come first."""
    for name in (DOMAINS, WEIGHTS, PRIOR):
        folder_paths.add_model_folder_path(name, os.path.join(folder_paths.models_dir, name))
        # A YAML entry makes the key with an empty set of extensions, which would list every file.
        paths, _ = folder_paths.folder_names_and_paths[name]
        folder_paths.folder_names_and_paths[name] = (paths, {EXTENSION})


def make_folder() -> None:
    """Make ``models/e4t_domains``, so that there is a place to put a file; where that cannot be, its absence is told later."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.join(folder_paths.models_dir, DOMAINS), exist_ok=True)


def concept_places() -> Places:
    """Where concepts are saved: ComfyUI's first folders of each kind, made if need be.

    Raises:
        ModelFileError: one cannot be made.
    """
    register_folders()
    words = Path(folder_paths.get_folder_paths("embeddings")[0]) / CONCEPTS
    weights = Path(folder_paths.get_folder_paths(WEIGHTS)[0])
    return Places(_made(words), _made(weights))


def stock_folders() -> Folders:
    """Where stock nodes look for LoRAs and embeddings: ComfyUI's first folders of each kind, made if need be.

    Not the folder of concept files, so that no export replaces one.

    Raises:
        ModelFileError: one cannot be made.
    """
    loras, embeddings = (Path(folder_paths.get_folder_paths(kind)[0]) for kind in ("loras", "embeddings"))
    return Folders(_made(loras), _made(embeddings), "embedding:")


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ModelFileError(
            f"The folder {folder} could not be made ({error}): check that its parent may be written to."
        ) from error
    return folder


def weights_folders() -> list[Path]:
    """Where the second files of exact concepts may be."""
    register_folders()
    return [Path(folder) for folder in folder_paths.get_folder_paths(WEIGHTS)]


def prior_folder() -> Path:
    """Where prior pictures are kept; it need not be there yet."""
    register_folders()
    return Path(folder_paths.get_folder_paths(PRIOR)[0])


def concept_names() -> list[str]:
    """Names of the concept files without folder and ending, for the node's combo."""
    names = (name.replace("\\", "/") for name in folder_paths.get_filename_list("embeddings"))
    found = (name.removeprefix(f"{CONCEPTS}/") for name in names if name.startswith(f"{CONCEPTS}/"))
    return [name.removesuffix(EXTENSION) for name in found if name.endswith(EXTENSION) and "/" not in name]


def concept_path(name: str) -> Path:
    """Path of a concept file by its combo name.

    Raises:
        ModelFileError: it is not there, or the name leads out of the folder; the message says where it belongs.
    """
    plain = name.removesuffix(EXTENSION).removeprefix(f"{CONCEPTS}/").removeprefix(f"{CONCEPTS}\\")
    folders = [Path(folder) / CONCEPTS for folder in folder_paths.get_folder_paths("embeddings")]
    if plain and not re.search(r"[/\\\0:]", plain) and plain not in (".", ".."):
        for folder in folders:
            path = folder / f"{plain}{EXTENSION}"
            if path.is_file():
                return path
    places = " or ".join(str(folder) for folder in folders)
    raise ModelFileError(
        f"Concept file {name[:100]!r} was not found in {places}: put it there, or save the concept again, then press R to"
        " refresh."
    )


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
