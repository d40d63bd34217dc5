"""The method of E4T in plain torch: a photo goes in, a word comes out.

"The paper" is Gal et al. 2023, "Designing an Encoder for Fast Personalization of Text-to-Image Models". Nothing here
knows ComfyUI, diffusers or a file browser: models enter through the two protocols of :mod:`.unet`.
"""
