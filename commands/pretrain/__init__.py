"""Pre-training of a domain on a real Stable Diffusion base."""
