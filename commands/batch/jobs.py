"""What a batch is to draw: one job for each photo and prompt, known by its content and by nothing else.

A job's key is the SHA-256 of all that decides its picture: the workflow with the photo (by its content), prompt, seed and
other inputs in their places. The same command therefore means the same jobs, wherever it was cut off.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .api_workflow import Nodes
from .filling import FOLDER, Filling
from .photos import Photo, file_name
from .prompts import Row


@dataclass(frozen=True)
class Job:
    """One photo with one prompt.

    Attributes:
        key: 64 hexadecimal digits.
        photo: what is learned.
        row: the prompt.
        seed: what is drawn with; none where the workflow has no single seed.
    """

    key: str
    photo: Photo
    row: Row
    seed: int | None

    def file(self, number: int, suffix: str) -> str:
        """Where its picture goes, relative to the folder of results: by content, so that a job done twice is one file.

        Args:
            number: of the picture, from 1; a job may draw several.
            suffix: of the file, with its dot.
        """
        prompt = file_name(self.row.prompt.lower(), 40)
        several = f"_{number}" if number > 1 else ""
        return f"{self.photo.concept}/{prompt}_{self.key[:12]}{several}{suffix}"

    def output(self, batch: str) -> str:
        """What the files that a server saves for it begin with, below the server's output folder."""
        return f"{FOLDER}/{batch}/{self.key[:16]}"

    def prompt_id(self, batch: str, attempt: int) -> str:
        """The id that it has on a server: always the same in one batch, so that a server knows it again.

        Args:
            batch: id of the batch.
            attempt: counted from 1; a job that failed is another to the server when it is tried again.
        """
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{batch} {self.key} {attempt}"))


class Plan:
    """The jobs of a batch, those of one photo in a row, so that it is learned once.

    Args:
        filling: makes each job's workflow.
        photos: at least one.
        rows: at least one.

    Attributes:
        repeated: how many jobs were the same as others, and were left out.
    """

    def __init__(self, filling: Filling, photos: Sequence[Photo], rows: Sequence[Row]) -> None:
        self.filling = filling
        self.jobs = list(self._jobs(photos, rows))
        self.repeated = len(photos) * len(rows) - len(self.jobs)

    def _jobs(self, photos: Sequence[Photo], rows: Sequence[Row]) -> Iterator[Job]:
        known = set()
        for photo in photos:
            for row in rows:
                text = json.dumps(self.filling.filled(photo.digest, row), sort_keys=True, ensure_ascii=False)
                key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
                if key not in known:
                    known.add(key)
                    yield Job(key, photo, row, self.filling.seed(row))


def prompt(filling: Filling, job: Job, sent_as: str, batch: str) -> Nodes:
    """The workflow that a server gets for a job; everything that it saves is named after the job.

    Args:
        filling: of the job's plan.
        job: the job.
        sent_as: what the server calls its photo.
        batch: id of the batch.
    """
    return filling.prompt(job.photo, sent_as, job.row, job.output(batch))
