"""What `dev.py` is made of, in two halves.

`bootstrap` and what it imports (`comfyui_source`, `console`, `environment`, `lock`, `places`) is standard library only,
because it runs before anything is installed. Everything else runs in `.venv`, started by `program`.
"""
