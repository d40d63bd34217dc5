"""The only place that knows ComfyUI's insides; everything here hands tensors and small objects to the core."""
