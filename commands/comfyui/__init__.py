"""A ComfyUI of a command's own: started, asked, and ended with whoever started it."""
