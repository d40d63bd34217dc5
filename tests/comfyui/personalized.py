"""Pictures by stock nodes with what the node "E4T Personalize" gives."""

from __future__ import annotations

from oracle import ksample

import nodes


def encode(clip, text):
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def draw(model, clip, text="a photo of S*", **options):
    return ksample(model, {"positive": encode(clip, text), "negative": encode(clip, "blurry")}, **options)
