"""The extension's version, as files that it writes carry it; a test holds it equal to pyproject.toml's."""

VERSION = "0.1.0"
