"""What a report must not tell: who a person is, how their folders are called, and how they named the photo."""

from __future__ import annotations

import getpass
import re
import socket
from collections.abc import Sequence
from pathlib import Path

HOME, FOLDER, PERSON, MACHINE, PHOTO = "(home)", "(folder)", "(user)", "(machine)", "(the photo)"
NOBODY = {"root", "user", "admin", "administrator", "runner", "ubuntu", "localhost"}
"""Names that tell nothing, and may be words of a sentence."""
LEAST = 3  # characters of a name that is taken out wherever it stands as a word
# What stands before an absolute path, and what a path does not hold.
PATH = re.compile(r"""(?<![\w.:/\\)>-])(?:[A-Za-z]:[\\/]|\\\\|/)(?:[^\s/\\'"()<>:,;]+[\\/]+)+([^\s/\\'"()<>:,;]*)""")

# What is left of a long path in a message: "...", its end.
CUT = re.compile(r"""\.{3}(?:[^\\/\n'"]{0,120}[\\/])+""")


class Privacy:
    """Args:
    folders: whose paths are known, however they are called.
    photo: the photo's file, whose name may be a person's.
    """

    def __init__(self, folders: Sequence[Path], photo: Path) -> None:
        known: dict[str, str] = {}
        for path in (photo, photo.absolute(), photo.resolve()):
            known |= {spelled: PHOTO for spelled in _spelled(path)}
        # A word of its own: the name alone stands in messages, too.
        self._photo = re.compile(rf"(?<!\w){re.escape(photo.name)}(?!\w)", re.IGNORECASE)
        for folder in folders:
            for path in {folder.absolute(), folder.resolve()}:
                # Of "/" nothing would be left to read.
                if len(path.parts) > 1:
                    known |= {spelled: FOLDER for spelled in _spelled(path) if spelled not in known}
        known |= {spelled: HOME for spelled in _spelled(Path.home()) if len(Path.home().parts) > 1}
        # The longest first, because folders lie in one another.
        self._known = sorted(known.items(), key=lambda pair: -len(pair[0]))
        # First names alone stand in paths that were cut.
        people = [part for name in (_user(), Path.home().name) for part in (name, *re.split(r"[\s._-]+", name))]
        names = [*((name, PERSON) for name in dict.fromkeys(people)), (socket.gethostname(), MACHINE)]
        self._names = [
            (re.compile(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", re.IGNORECASE), put)
            for name, put in names
            if len(name) >= LEAST and name.lower() not in NOBODY
        ]

    def plain(self, text: str) -> str:
        """The text without what it must not tell."""
        for path, put in self._known:
            text = text.replace(path, put)
        text = self._photo.sub(PHOTO, text)
        text = CUT.sub(f"{FOLDER}/", text)
        text = PATH.sub(lambda found: f"{FOLDER}/{found[1]}", text)
        for name, put in self._names:
            text = name.sub(put, text)
        return text


def _spelled(path: Path) -> set[str]:
    """How messages write it: as it is, with slashes, and as Python shows texts."""
    plain = str(path)
    return {plain, path.as_posix(), repr(plain)[1:-1], plain.encode("unicode_escape").decode("ascii")} - {"", ".", "/"}


def _user() -> str:
    try:
        return getpass.getuser()
    # Windows has no module pwd, and a container's user may have no name.
    except (ImportError, KeyError, OSError):
        return ""
