"""The word in CLIP: tokens, encoding, and what was encoded."""
