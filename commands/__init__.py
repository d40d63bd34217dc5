"""What is run from a clone and not from a graph: pre-training, its data, conversion of other projects' checkpoints."""
