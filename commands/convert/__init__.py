"""``python -m commands.convert DIR``: checkpoints of mkshing/e4t-diffusion (MIT, 2023) become domain files.

"The peer" below. Its pre-trained directories hold ``config.json``, ``weight_offsets.pt`` and ``encoder.pt``; its tuned ones
``unet.pt``, ``encoder.pt``, sometimes ``text_encoder.pt``, and a ``config.json`` whose ``pretrained_args`` are those of the
pre-training. Its ``.pt`` files are pickles: only tensors are taken from them, and nothing in them is ever executed.
"""
