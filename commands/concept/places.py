"""Where the files of a concept are: side by side, or as ComfyUI lays them out.

ComfyUI has concept files in ``models/embeddings/e4t`` and the second files of exact ones in ``models/e4t_concepts``.
"""

from __future__ import annotations

from pathlib import Path

from e4t_core.files.concept_file import Places
from e4t_core.files.file_errors import FileError, FileKind

FOLDER = FileKind("Folder")


def absolute(text: str) -> Path:
    """A path from a command line as messages and scripts need it."""
    return Path(text).absolute()


def weights_folder(words: Path, given: Path | None = None) -> Path:
    """The folder of second files for concept files in ``words``, an absolute path: the given one, ComfyUI's, or ``words``."""
    if given is not None:
        return given
    if (words.parent.name, words.name) == ("embeddings", "e4t"):
        return words.parent.parent / "e4t_concepts"
    return words


def output_places(words: Path, weights: Path | None = None) -> Places:
    """The folders to write a concept to; they are made where only they are missing, as in a new ComfyUI.

    Raises:
        FileError: one of them cannot be made.
    """
    return Places(made(words), made(weights_folder(words, weights)))


def made(folder: Path) -> Path:
    """A folder to write to, made if its parent is there.

    Raises:
        FileError: it cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise FOLDER.fault(folder, "was not found", "make it, or name another") from error
    except OSError as error:
        raise _unusable(folder, error) from error
    return folder


def _unusable(folder: Path, error: OSError) -> FileError:
    if isinstance(error, FileExistsError | NotADirectoryError):
        return FOLDER.fault(folder, "is not a folder", "name a folder")
    return FOLDER.fault(folder, f"could not be made ({error.strerror})", "check that its parent may be written to")
