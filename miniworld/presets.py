"""Settings of one-shot tuning and prompt templates that suit the mini world; they travel in its domain files."""

from __future__ import annotations

import dataclasses

from e4t_core.methods.e4t.settings import TuningSettings

# The base is small and trained from scratch: an Adam step moves every weight by the rate, so it needs more. Its words
# lie about one length of the domain word from it; lambda is the one of pre-training. Both were chosen on validation faces.
_MINI = TuningSettings(steps=15, learning_rate=1e-4, regularization=1e-4, micro_batch=16)
# At that rate the encoder, and all of the UNet by the gradients through its feature pass, would throw the word so
# far in each of the first steps that a rounding of 1e-6 grows to a tenth of what is learned. With neither, the result is the
# same whatever the micro-batch; 12 validation faces gained 0.02 in NAMED and lost 0.013 in PROMPT, both within their intervals;
# 64 held-out faces, drawn afterwards, lost 0.01 in NAMED.
FACES = dataclasses.replace(_MINI, encoder_rate=0.03, stop_feature_gradient=True)
# What cats wear lies against their fur, so its rim is learned with them and comes back in other pictures. Chosen on validation cats;
# on validation faces, which show little of that, the same threshold costs likeness.
CATS = dataclasses.replace(_MINI, mask_threshold=0.5)

PRESETS = {"faces": FACES, "cats": CATS}
