"""The node "E4T Settings": every expert value of tuning and refinement in one place."""

from __future__ import annotations

from comfy_api.latest import io

from ..e4t_core.presets import FACE, TuningSettings

SettingsIO = io.Custom("E4T_SETTINGS")
BELOW_ONE = 0.999999


class Settings(io.ComfyNode):
    """Expert values; without this node the domain's own preset is used."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="E4TSettings",
            display_name="E4T Settings",
            category="E4T",
            description="Expert values for E4T Personalize. Without this node, the domain's own preset is used.",
            search_aliases=["e4t options", "tuning settings", "personalization settings"],
            # Widget values are stored by position: never insert in the middle, only append.
            inputs=[
                io.Int.Input(
                    "steps",
                    default=FACE.steps,
                    min=0,
                    max=1000,
                    tooltip="Optimiser steps. 0: the encoder's first answer, without tuning (an instant preview).",
                ),
                io.Float.Input(
                    "learning_rate",
                    default=FACE.learning_rate,
                    min=0.0,
                    max=1.0,
                    step=0.000001,
                    round=False,
                    tooltip="Every step moves every trained weight by about this much.",
                ),
                io.Float.Input(
                    "regularization",
                    default=FACE.regularization,
                    min=0.0,
                    max=100.0,
                    step=0.0001,
                    round=False,
                    tooltip="lambda: how strongly the word is held near the domain's word (0.1 for faces, 0.0001 for cats).",
                ),
                io.Int.Input(
                    "batch",
                    default=FACE.batch,
                    min=1,
                    max=256,
                    tooltip="Noise levels of the photo per step. At least 16 is advised: they cover the schedule.",
                ),
                io.Int.Input(
                    "micro_batch",
                    default=FACE.micro_batch,
                    min=1,
                    max=256,
                    tooltip="How many of them are computed at once. Lower needs less memory and gives nearly the same result. At most the batch.",
                ),
                io.Boolean.Input("train_encoder", default=True, tooltip="Tune the concept encoder."),
                io.Boolean.Input("train_offsets", default=True, tooltip="Tune the domain's weight offsets."),
                io.Boolean.Input("train_unet", default=True, tooltip="Tune all UNet weights."),
                io.Boolean.Input(
                    "use_mask",
                    default=True,
                    tooltip="Learn where the mask is 1, or, without a mask, where the subject is found (find_subject). Off: all of the crop.",
                ),
                io.Boolean.Input(
                    "refine",
                    default=True,
                    tooltip="Predict the word anew at every sampling step. Off: one fixed word, as fast as stock.",
                ),
                io.Float.Input(
                    "end_percent",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Share of the sampling schedule after which the word is frozen.",
                ),
                # Optional: workflows from before it was there have no value for it.
                io.Boolean.Input(
                    "stop_feature_gradient",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="No gradients through the pass that looks at the noisy photo: less work per step, and less sensitive to rounding.",
                ),
                io.Float.Input(
                    "mask_threshold",
                    default=FACE.mask_threshold,
                    min=0.0,
                    max=0.9,
                    step=0.05,
                    optional=True,
                    advanced=True,
                    tooltip="How much of a latent cell (8 x 8 pixels) the mask must cover before it is learned. Raise it (0.5) if what"
                    " you left out beside the subject, such as a hat, comes back all the same.",
                ),
                _advanced(
                    "weight_decay", FACE.weight_decay, 1.0, 0.001, "AdamW: pull of every trained weight to zero."
                ),
                _advanced(
                    "beta1", FACE.betas[0], BELOW_ONE, 0.001, "AdamW: how long a gradient's direction is remembered."
                ),
                _advanced(
                    "beta2", FACE.betas[1], BELOW_ONE, 0.0001, "AdamW: how long a gradient's size is remembered."
                ),
                _advanced("eps", FACE.eps, 1.0, 1e-8, "AdamW: gradients much smaller than this move a weight by less."),
                io.Boolean.Input(
                    "find_subject",
                    default=FACE.find_subject,
                    optional=True,
                    tooltip="Without a mask: learn only what the domain finds to be the subject (the bright part of the preview). Off:"
                    " learn all of the crop, background included. With a mask, or with use_mask off, it does nothing.",
                ),
                io.Float.Input(
                    "encoder_rate",
                    default=FACE.encoder_rate,
                    min=0.001,
                    max=1.0,
                    step=0.01,
                    round=False,
                    optional=True,
                    advanced=True,
                    tooltip="The encoder's share of the learning rate. Lower it (0.03) if small changes, such as another micro_batch, give"
                    " another picture.",
                ),
            ],
            outputs=[SettingsIO.Output(display_name="settings")],
        )

    @classmethod
    def execute(cls, **values: float | bool) -> io.NodeOutput:
        values["micro_batch"] = min(values["micro_batch"], values["batch"])
        # Not sent by workflows from before they were there.
        betas = (values.pop("beta1", FACE.betas[0]), values.pop("beta2", FACE.betas[1]))
        return io.NodeOutput(TuningSettings(betas=betas, **values))


def _advanced(name: str, default: float, highest: float, step: float, tooltip: str) -> io.Input:
    """A number that hides behind "advanced", and that workflows from before it was there need not send."""
    return io.Float.Input(
        name,
        default=default,
        min=0.0,
        max=highest,
        step=step,
        round=False,
        optional=True,
        advanced=True,
        tooltip=tooltip,
    )
