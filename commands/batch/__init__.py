"""Many photos and many prompts through one workflow in a running ComfyUI: ``python -m commands.batch --help``."""
