"""How a pre-training run ends before its last step."""


class TrainingError(RuntimeError):
    """A run that cannot go on; the message is one sentence that says why and what to do."""


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C) and has saved where it is; the message says so."""
