"""What one evaluation of the sampler takes with a word that is refined, beside a stock one, in floating-point operations.

ComfyUI's own sampler runs on real tensors with this pack's MODEL and CLIP, at true shapes, but for the UNet's products: those
are counted and give any numbers. So no weights of that size exist, and an evaluation takes seconds on a CPU, while all that decides
by content (which prompt is which) sees what it always sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from e4t_core.concept import Concept
from e4t_core.methods.e4t.concept_encoder import ConceptEncoder
from e4t_core.methods.e4t.settings import FACE
from e4t_core.methods.e4t.word_predictor import E4TPredictor

from . import host
from .fake_world import CARD, load, set_to
from .full_size import CLIP_LAYERS, CLIP_WIDTH
from .operations import FORMULAS, Operations
from .random_checkpoint import draw, shapes_of

TRIGGER, GUIDANCE = "S*", 7.0
TOKENS = 80
PROJECTIONS = (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.convolution)


@dataclass(frozen=True)
class Case:
    """Attributes:
    name: for the table.
    negative: prompt.
    guidance: scale; at 1 the negative prompt is not evaluated.
    most: the limit of refined / stock.
    """

    name: str
    negative: str
    guidance: float
    most: float


CASES = (
    Case("empty negative prompt", "", GUIDANCE, 1.03),
    Case("another negative prompt", "blurry, bad anatomy", GUIDANCE, 1.20),
    Case("without guidance (CFG 1)", "", 1.0, 1.36),
)


class _Counted(Operations):
    """The UNet's products give any numbers; the text encoder's and the word predictor's are computed."""

    _number = 0

    def compute(self, func: Any, args: Any, kwargs: Any) -> Any:
        formula = FORMULAS.get(func._overloadpacket)
        if formula is None or not _is_unets(func, args):
            return func(*args, **kwargs)
        shapes = func(*tree_map_only(Tensor, lambda tensor: tensor.to("meta"), args), **kwargs)
        # Other numbers every time, or a word would be found to be the one before.
        self._number += 1
        return tree_map_only(Tensor, lambda made: torch.full(made.shape, 1e-3 * self._number, dtype=made.dtype), shapes)


def _is_unets(func: Any, args: Any) -> bool:
    """Whether a product has one of the UNet's hollow weights, or is attention among more than a prompt's tokens."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    if any(tensor.numel() > 1 and not any(tensor.stride()) for tensor in tensors):
        return True
    return func._overloadpacket not in PROJECTIONS and max(max(tensor.shape) for tensor in tensors) > TOKENS


def hollow(module: nn.Module) -> None:
    """Weights of zeros, of which matrices and kernels take no memory."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                zeros = torch.zeros(() if value.ndim > 1 else value.shape).expand(value.shape)
                part._parameters[name] = nn.Parameter(zeros, requires_grad=False)


def fill(module: nn.Module) -> None:
    """Random weights that keep a signal's size."""
    drawn = draw(shapes_of(module), torch.Generator().manual_seed(0))
    for folder, part in module.named_modules():
        for name, value in part._parameters.items():
            if value is not None:
                new = drawn[f"{folder}.{name}".lstrip(".")].float()
                part._parameters[name] = nn.Parameter(new, requires_grad=False)


def evaluations(make_state: Callable[[], Mapping[str, Tensor]], side: int) -> list[tuple[int, int]]:
    """Operations of one evaluation of each of the :data:`CASES`: with a stock prompt, and with a word.

    It is a run's second one: in the first one, the prompts are looked through.

    Args:
        make_state: a checkpoint, see ``fake_world.load``.
        side: of the latent.
    """
    import comfy.sample
    from comfy.ldm.modules import attention

    base = load(make_state, torch.float32, CARD)
    hollow(base.model.model.diffusion_model)
    fill(base.clip.cond_stage_model)
    networks = base.networks(torch.float32)
    unet, text = networks.unet, networks.text
    generator = torch.Generator().manual_seed(1)
    predictor = E4TPredictor(
        ConceptEncoder(CLIP_LAYERS, CLIP_WIDTH, unet.feature_width, text.width).eval().requires_grad_(False),
        torch.randn(1, CLIP_LAYERS, CLIP_WIDTH, generator=generator),
        text.word("face"),
        0.1,
    )
    embedding = torch.randn(1, text.width, generator=generator) * 0.38 / text.width**0.5
    concept = Concept(TRIGGER, "e4t", "cost", "cost", embedding, (), FACE, 0, predictor)
    store = host.pack("nodes.host.learning.result_store").STORE
    with torch.no_grad():
        empty = text.empty()
    held = host.pack("nodes.host.sampling.held_concept").HeldConcept.of(concept, empty, {})
    model = host.pack("nodes.host.sampling.patched_model").with_concept(base.model, held, store.prompts)
    clip = host.pack("nodes.host.prompt.concept_clip").with_concept(
        base.clip, TRIGGER, concept.fingerprint, embedding, store.prompts
    )
    start = torch.randn(1, 4, side, side, generator=generator)

    @torch.inference_mode()
    def evaluate(model: Any, clip: Any, prompt: str, case: Case) -> int:
        positive, negative = host.encode(clip, [prompt]), host.encode(clip, [case.negative])
        marks = []
        # As on a card; a CPU's default would fill the whole matrix.
        with set_to(attention, optimized_attention=attention.attention_pytorch), _Counted() as counted:
            comfy.sample.sample(
                model, start, 2, case.guidance, "euler", "normal", positive, negative, torch.zeros_like(start),
                callback=lambda *_: marks.append(counted.total), disable_pbar=True,
            )  # fmt: skip
        return marks[1] - marks[0]

    return [
        (
            evaluate(base.model, base.clip, "a photo of a face", case),
            evaluate(model, clip, f"a photo of {TRIGGER}", case),
        )
        for case in CASES
    ]
