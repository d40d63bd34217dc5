"""What runs in a process with ComfyUI's own modules and this pack; the rest of the commands starts it, and never imports it."""
