"""The method of E4T (encoder-based domain tuning) in plain torch: a photo goes in, a word comes out.

Nothing here knows ComfyUI, diffusers or a file browser: models enter through the two protocols of :mod:`.unet`.
"""
