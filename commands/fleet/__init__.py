"""The jobs of a batch on many graphics cards, by Ray: ``python -m commands.fleet --help``.

Ray is needed here alone, and is nothing that an artist installs.
"""
