"""The networks that judge: each in a file of its own, behind what ``network.py`` says."""
