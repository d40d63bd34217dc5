"""The methods, each in its own file or folder."""
