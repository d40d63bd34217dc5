"""The prompts of a batch, from a table or from a text file with one prompt a line.

A table has a header with a column ``prompt``, and may have ``seed`` and columns named after inputs, ``title.input`` or
``id.input``. Its separator is what the header shows: a comma, a semicolon (as spreadsheets write it in half of Europe), a
tab or ``|``.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from e4t_core.files.file_errors import FileError, FileKind, shown
from e4t_core.files.whole_file import check_is_file

from .faults import BatchError
from .slots import MOST_SEED

SEPARATORS = ",;\t|"
PROMPT, SEED = "prompt", "seed"
NEVER = "\x1f"
"""Separates the columns of a table that has one."""


class PromptsError(BatchError, FileError):
    """A file of prompts that cannot be used."""


FILE = FileKind("Prompts file", "correct it", PromptsError)


@dataclass(frozen=True)
class Row:
    """One prompt.

    Attributes:
        line: where it begins in the file, from 1.
        prompt: not empty.
        seed: 0 to 2**64 - 1; none where the workflow's is meant.
        inputs: texts for other inputs, by name.
    """

    line: int
    prompt: str
    seed: int | None = None
    inputs: tuple[tuple[str, str], ...] = ()


def read_prompts(path: Path) -> list[Row]:
    """The rows of a file, in its order; blank lines are left out.

    Raises:
        PromptsError: it is not there, no text, holds no prompt, or a row is not as the header says.
    """
    check_is_file(path, FILE)
    lines = _text(path).splitlines()
    first = next((line for line in lines if line.strip()), "")
    for separator in SEPARATORS if any(sign in first for sign in SEPARATORS) else NEVER:
        header = [name.strip() for name in next(csv.reader([first], delimiter=separator), [])]
        if PROMPT in [name.lower() for name in header]:
            rows = list(_table(path, "\n".join(lines), separator, header))
            break
    else:
        rows = [Row(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not rows:
        raise FILE.fault(path, "holds no prompt", "write one prompt a line, or a table with a column named prompt")
    return rows


def _text(path: Path) -> str:
    try:
        held = path.read_bytes()
    except OSError as error:
        raise FILE.fault(path, f"cannot be read ({error.strerror})", "check its permissions") from error
    wide = held.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = held.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise FILE.fault(path, f"is not in UTF-8 (byte {error.start})", 'save it as "CSV UTF-8"') from error
    if "\0" in text:
        raise FILE.fault(path, "is no text file", "name a CSV or a text file")
    return text


def _table(path: Path, text: str, separator: str, header: list[str]) -> Iterator[Row]:
    names = [name.lower() if name.lower() in (PROMPT, SEED) else name for name in header]
    doubled = sorted({name for name in names if name and names.count(name) > 1})
    if doubled:
        raise FILE.fault(path, f"has several columns named {shown(doubled[0])}", "keep one of them")
    reader = csv.reader(io.StringIO(text), delimiter=separator)
    line, passed = 1, False
    try:
        for cells in reader:
            at, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if passed:
                yield _row(path, at, names, cells)
            passed = True
    except csv.Error as error:
        raise FILE.fault(path, f"is no table at line {line} ({error})", "save it as CSV again") from error


def _row(path: Path, line: int, names: list[str], cells: list[str]) -> Row:
    if len(cells) > len(names) and any(cell.strip() for cell in cells[len(names) :]):
        raise FILE.fault(
            path,
            f"has {len(cells)} fields in line {line}, and {len(names)} in its header",
            'put "quotes" around prompts that hold the separator',
        )
    values = {name: cell.strip() for name, cell in zip(names, cells, strict=False) if name}
    prompt = values.pop(PROMPT, "")
    if not prompt:
        raise FILE.fault(path, f"has no prompt in line {line}", "write one, or take the line out")
    seed = values.pop(SEED, "")
    inputs = tuple((name, text) for name, text in values.items() if text)
    return Row(line, prompt, _seed(path, line, seed) if seed else None, inputs)


def _seed(path: Path, line: int, text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed <= MOST_SEED:
        raise FILE.fault(
            path, f"has the seed {shown(text)} in line {line}", f"seeds are whole numbers up to {MOST_SEED}"
        )
    return seed
