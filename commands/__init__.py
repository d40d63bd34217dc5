"""What is run from a clone, not from a graph: ``python -m commands.NAME --help``."""
