"""The node "E4T Personalize": a photo goes in, a word comes out."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .host.learning.personalisation import Request, personalise
from .host.learning.progress import Progress
from .host.learning.result_store import STORE
from .host.prompt import concept_clip
from .host.prompt.prompt_words import AliasError, check_alias
from .host.sampling import patched_model
from .load_domain import DomainIO
from .settings import SettingsIO

ConceptIO = io.Custom("E4T_CONCEPT")


class Personalize(io.ComfyNode):
    """Learns one photo (or a few of the same thing) in seconds; the word then works in every stock node."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TPersonalize",
            display_name="E4T Personalize",
            category="E4T",
            description="Learns what is in a photo and gives it a word. Write the word into any prompt that is encoded with"
            " this node's CLIP and drawn with its MODEL.",
            search_aliases=["e4t", "personalize", "face", "likeness", "textual inversion", "dreambooth", "one photo"],
            # Widget values are stored by position: never insert in the middle, only append.
            inputs=[
                io.Model.Input("model", tooltip="A Stable Diffusion 1.x or 2.x base model, also with LoRAs."),
                io.Clip.Input("clip", tooltip="Its text encoder."),
                io.Vae.Input("vae", tooltip="Its VAE."),
                DomainIO.Input("domain", tooltip="From Load E4T Domain."),
                io.Image.Input("image", tooltip="The photo. A batch is several photos of ONE person or thing."),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="1 = learn here; the crop follows it. Paint over the subject in Load Image's mask editor. A picture with a"
                    " transparent background has its mask the other way round: put InvertMask between.",
                ),
                SettingsIO.Input("settings", optional=True, tooltip="Unconnected: the domain's preset."),
                io.String.Input(
                    "word",
                    default="S*",
                    tooltip="Stands for the photo in prompts. embedding:e4t/ and the word works as well.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    # Randomised after every queue, it would make every queue tune again.
                    control_after_generate=io.ControlAfterGenerate.fixed,
                    tooltip="Of the tuning. The same inputs and seed give the same concept.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="MODEL"),
                io.Clip.Output(display_name="CLIP"),
                ConceptIO.Output(display_name="E4T_CONCEPT"),
                io.LossMap.Output(display_name="LOSS_MAP"),
            ],
            # What it says is then in the history of a job, too, for which ComfyUI had its result.
            has_intermediate_output=True,
        )

    @classmethod
    def validate_inputs(cls, word: str | None = None) -> bool | str:
        # A linked value is None here, and is checked again in execute.
        try:
            if word is not None:
                check_alias(word)
        except AliasError as error:
            return str(error)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        domain: Any,
        image: Any,
        word: str,
        seed: int,
        mask: Any = None,
        settings: Any = None,
    ) -> io.NodeOutput:
        with Progress(word) as progress:
            concept_clip.check_free(clip, word)
            patched_model.check_free(model, word)
            request = Request(model, clip, vae, domain, image, mask, word, settings, seed)
            parts = personalise(request, STORE, progress)
            concept = parts.concept
            new_clip = concept_clip.with_concept(
                clip, word, concept.fingerprint, concept.static_embedding, STORE.prompts
            )
            new_model = patched_model.with_concept(model, parts, STORE.prompts)
        # With the text in the outputs, a script finds it in the job's history.
        losses, said = {"loss": list(concept.losses)}, {"text": progress.said}
        return io.NodeOutput(new_model, new_clip, parts, losses, ui=said)
