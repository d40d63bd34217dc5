"""``python -m commands.convert DIR``: checkpoints of mkshing/e4t-diffusion (MIT, 2023) become domain files.

A pre-trained directory holds ``config.json``, ``weight_offsets.pt`` and ``encoder.pt``; a tuned one ``unet.pt``,
``encoder.pt``, sometimes ``text_encoder.pt``, and a ``config.json`` whose ``pretrained_args`` are those of the
pre-training. The ``.pt`` files are pickles: only tensors are taken from them, and nothing in them is ever executed.
"""
