"""What stops a batch, and what only costs one of its jobs."""

from __future__ import annotations


class BatchError(ValueError):
    """What a batch cannot begin or go on with; the message is one sentence that says what to do."""


class Unreachable(BatchError):
    """The server does not answer now, but may in a while: it is starting, was ended, or the network is gone."""


class Rejected(BatchError):
    """The server refuses one job or one photo; the others may be all right."""
