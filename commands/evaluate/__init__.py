"""How like the person, and how true to the prompt, pictures of any method are: ``python -m commands.evaluate --help``.

The protocol is that of Gal et al. 2023, "Encoder-based Domain Tuning for Fast Personalization of Text-to-Image Models",
section 4: people of a folder in the layout of Labeled Faces in the Wild, one photo of each is learned, the others judge.
"""
