"""``python -m commands.train METHOD``: learn a folder of photos by any method, without ComfyUI."""
