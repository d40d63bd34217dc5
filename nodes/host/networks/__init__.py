"""ComfyUI's networks as the core's: UNet, text encoder, image backbone."""
