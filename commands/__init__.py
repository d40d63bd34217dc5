"""What is run from a clone, not from a graph: pre-training and its data, conversion, batches."""
