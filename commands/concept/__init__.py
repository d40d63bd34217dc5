"""``python -m commands.concept info|mix|export FILE...``: concept files from a terminal, without ComfyUI.

places   where the files of a concept are, as ComfyUI lays them out
info     what a file says of its concept
mix      the weighted average of some, as a new file
export   a stock LoRA and embedding
"""
