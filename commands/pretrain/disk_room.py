"""Where a run writes: whether the folders can be made, and whether the disks have room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from e4t_core.files.file_errors import shortened

from .config.sections import Config
from .estimate import Estimate


def unusable_places(config: Config) -> list[str]:
    """A sentence for each folder that cannot be made or written to."""
    problems = []
    for setting, path in _places(config).items():
        try:
            place = _first_there(path)
            if not place.is_dir():
                problems.append(f"{setting} = {path} cannot be made, because {place} is no folder: choose another one.")
            elif not os.access(place, os.W_OK | os.X_OK):
                problems.append(f"{setting} = {path} may not be made or written to: choose another one.")
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else "") or str(error)
            problems.append(f"{setting} = {shortened(str(path), 150)} cannot be made ({reason}): choose another one.")
    return problems


def lacking_room(config: Config, needed: Estimate, rows: int) -> list[str]:
    """A sentence for each disk that has no room for checkpoints and cache, less what an earlier start of the run made.

    Args:
        config: all of whose places can be used.
        needed: by the run.
        rows: of the data.
    """
    output, places = config.output, _places(config)
    # One more than are kept: a new one is written before the oldest goes.
    made = _size_of(Path(output.folder) / "checkpoints")
    rooms = {"output.folder": max(needed.checkpoint * (output.keep_checkpoints + 1) - made, needed.checkpoint)}
    if config.data.cache_features:
        rooms["data.cache_folder"] = max(needed.cached_row * rows - _size_of(places["data.cache_folder"]), 0)
    problems, together = [], dict[int, int]()
    for setting, room in rooms.items():
        place = _first_there(places[setting])
        disk, free = place.stat().st_dev, shutil.disk_usage(place).free
        together[disk] = together.get(disk, 0) + room
        if free < together[disk]:
            problems.append(
                f"{setting} = {places[setting]} has {free / 1e9:.1f} GB free, but checkpoints and cached features there"
                f" need {together[disk] / 1e9:.1f} GB: free some, lower output.keep_checkpoints, or set data.cache_features"
                " to false."
            )
    return problems


def _places(config: Config) -> dict[str, Path]:
    folder = Path(config.output.folder)
    cache = {"data.cache_folder": Path(config.data.cache_folder or folder / "features")}
    return {"output.folder": folder} | (cache if config.data.cache_features else {})


def _first_there(path: Path) -> Path:
    """The path, or the nearest above it that exists; a file, where the path leads under one.

    Raises:
        OSError: it may not be looked at, or no path can be like that.
    """
    for place in (path.absolute(), *path.absolute().parents):
        try:
            os.lstat(place)
            return place
        except (FileNotFoundError, NotADirectoryError):
            continue
    raise FileNotFoundError(str(path))


def _size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
