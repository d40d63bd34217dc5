"""Pictures: from a downloaded data set to the micro-batches of a process."""
