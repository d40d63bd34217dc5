"""What programs that never heard of this extension read in a file's header: title, trigger, base model, preview.

Two dialects: ``modelspec.*`` (the Stable Diffusion model metadata standard, read by ComfyUI's Model Library) and the keys
that trainers write (``ss_*``, ``trained_words``), which ComfyUI's asset scanner (app/assets/services/metadata_extract.py) and
LoRA managers read.
"""

from __future__ import annotations

import json

from torch import Tensor

# Width of a word embedding -> base family, in each dialect.
FAMILIES = {768: "SD 1", 1024: "SD 2"}
ARCHITECTURES = {768: "stable-diffusion-v1", 1024: "stable-diffusion-v2"}
TRAINERS = {768: "sd_v1", 1024: "sd_v2"}
THUMBNAIL_LIMIT = 400_000
"""Characters of a preview: the whole header stays under 1 MiB, which is what ComfyUI reads."""


def stock_metadata(
    kind: str,
    title: str,
    trigger: str,
    embedding: Tensor,
    *,
    prediction: str = "",
    date: str = "",
    author: str = "",
    license: str = "",
    thumbnail: str = "",
) -> dict[str, str]:
    """A header's texts in both dialects; what is empty is left out.

    Args:
        kind: "textual-inversion" or "lora".
        title, trigger, author, license: as a person reads them.
        embedding: ``(V, D)``, whose width says which base family it is for.
        prediction: "epsilon" or "v".
        date: ISO 8601.
        thumbnail: a picture as a data URI.

    Raises:
        ValueError: the thumbnail is too long.
    """
    if len(thumbnail) > THUMBNAIL_LIMIT:
        raise ValueError(f"The preview has {len(thumbnail)} characters; a header holds at most {THUMBNAIL_LIMIT}.")
    width = embedding.shape[-1]
    trainer = TRAINERS.get(width, "")
    found = {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{ARCHITECTURES[width]}/{kind}" if width in ARCHITECTURES else "",
        "modelspec.title": title,
        "modelspec.trigger_phrase": trigger,
        "modelspec.base_model": FAMILIES.get(width, ""),
        "modelspec.prediction_type": prediction,
        "modelspec.date": date,
        "modelspec.author": author,
        "modelspec.license": license,
        "modelspec.thumbnail": thumbnail,
        "ss_base_model_version": f"{trainer}_v" if trainer and prediction == "v" else trainer,
        # A list, because a trigger may hold a comma.
        "trained_words": json.dumps([trigger]),
    }
    return {key: value for key, value in found.items() if value}
