"""What an evaluation cannot begin or go on with."""

from __future__ import annotations

from e4t_core.files.file_errors import FileError


class EvaluationError(FileError):
    """The message is one sentence that names what is wrong and says what to do."""
