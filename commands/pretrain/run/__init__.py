"""A run: what is trained, the loop, and what it leaves behind."""
