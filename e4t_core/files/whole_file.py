"""Files as the system has them: written whole or not at all, and looked at before anybody opens them."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .file_errors import FileKind, shortened

_OWN = re.compile(r"[0-9]+-[0-9a-f]{8}\.tmp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; it takes its place when the block ends without an error.

    Whoever reads sees the old file or the whole new one, never a part. An error leaves the old one and nothing else. The mode is
    the old file's, or that of any new file (by the umask). A link is followed: the file it names is replaced. Whoever
    opened the temporary file must have closed it when the block ends, and on Windows the old file too.

    Raises:
        OSError: the folder is missing or may not be written to, or the disk is full.
    """
    target = Path(os.path.realpath(path)) if os.path.islink(path) else Path(path)
    temporary = target.with_name(f"{_beginning(target)}{os.getpid()}-{secrets.token_hex(4)}.tmp")
    # Made here, because some writers make their files readable for one user only.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        mode = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _beginning(target: Path) -> str:
    """Of the names of its temporary files."""
    # Its own name may be as long as the system allows; 40 characters leave room in any encoding.
    return f".{target.name[:40]}."


def temporary_files(path: Path) -> list[Path]:
    """What :func:`replacing` left beside a path, which is no link, where the program was killed meanwhile.

    Others that write to it are not told apart: ask only where nobody does.
    """
    beginning = _beginning(path)
    return [
        beside
        for beside in path.parent.glob("*.tmp")
        if beside.name.startswith(beginning) and _OWN.fullmatch(beside.name[len(beginning) :])
    ]


def file_state(path: Path) -> tuple[int, ...] | None:
    """What becomes another when a file is replaced or written to; none where there is no file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def check_is_file(path: str | os.PathLike[str], kind: FileKind) -> int:
    """Check that there is an ordinary file; its size in bytes.

    Raises:
        FileError: of the kind; nothing is there, it is a folder or a pipe, or it may not be looked at.
    """
    found = _status(Path(path), kind)
    if stat.S_ISDIR(found.st_mode):
        raise kind.fault(path, "is a folder", "name the file")
    if not stat.S_ISREG(found.st_mode):
        raise kind.fault(path, "is no ordinary file", "name a file")
    return found.st_size


def check_is_folder(path: str | os.PathLike[str], kind: FileKind) -> None:
    """Check that there is a folder and that what lies in it may be opened.

    Raises:
        FileError: of the kind; nothing is there, it is a file, or it may not be entered.
    """
    if not stat.S_ISDIR(_status(Path(path), kind).st_mode):
        raise kind.fault(path, "is a file, not a folder", "name the folder it lies in")
    try:
        os.stat(os.path.join(path, os.curdir))
    except PermissionError as error:
        raise kind.fault(path, "may not be entered", "check its permissions") from error


def _status(path: Path, kind: FileKind) -> os.stat_result:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise kind.fault(
            path.name, f"was not found in {shortened(str(path.parent), 120, True)}", kind.missing
        ) from error
    except PermissionError as error:
        raise kind.fault(path, "may not be read", "check the permissions of its folder") from error
    except (OSError, ValueError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise kind.fault(path, f"could not be looked for ({reason})", "correct the path") from error
