"""How other packs encode, change and draw prompts: their arithmetic, written from the formulas, on stock nodes.

An *encoder* makes conditioning from a CLIP and a text. A *node* makes a positive conditioning from ``encode``. Both are the
same for our CLIP and a stock one, so that a picture by ours can be compared with a picture by stock ComfyUI.
"""

from __future__ import annotations

from collections.abc import Callable

import comfy.hooks
import torch
from oracle import area, average, concat, masked, ranged
from torch import Tensor

import nodes

MASK_TOKEN = 267  # a comma: what stands in a token's place where a prompt is encoded without it
EncodeTokens = Callable[[list], Tensor]


# Weights ----------------------------------------------------------------------------------------------------------


def weights_of(sections) -> Tensor:
    """``(1, T, 1)``."""
    return torch.tensor([item[1] for section in sections for item in section]).reshape(1, -1, 1)


def with_weights(sections, change) -> list:
    """The same tokens, each with ``change(weight, word id)``."""
    return [[(token, change(weight, word), word) for token, weight, word in section] for section in sections]


def plain(sections) -> list:
    """Without weights."""
    return with_weights(sections, lambda weight, word: 1.0)


def without(sections, chosen) -> list:
    """Another token in place of those for which ``chosen(weight, word id)``."""
    return [[(MASK_TOKEN if chosen(w, word) else t, w, word) for t, w, word in section] for section in sections]


def normalized(sections, way: str) -> list:
    """Weights spread over the tokens of a word ("length"), or shifted so that their mean is 1 ("mean")."""
    words = [word for section in sections for _, _, word in section]
    if "length" in way:

        def spread(weight, word):
            share = abs(weight - 1) / (words.count(word) if word else 1) ** 0.5
            return 1.0 if not word else 1 + share if weight > 1 else 1 - share

        sections = with_weights(sections, spread)
    if "mean" in way:
        inside = [weight for section in sections for _, weight, word in section if word]
        shift = 1 - sum(inside) / len(inside)
        sections = with_weights(sections, lambda weight, word: weight + shift if word else weight)
    return sections


def lowered(sections, weighted, whole: Tensor, encode: EncodeTokens) -> Tensor:
    """Weights below 1: a mix of the prompt with prompts that lack more and more of the weakest words.

    Of the levels w1 < w2 < ... < 1 the whole prompt gets w1, the one without the words of level i and below gets
    w(i+1) - w(i), and the one without all of them 1 - w(last).

    Args:
        weighted: the tokens with the weights that the prompts are encoded with.
    """
    levels = sorted({weight for section in sections for _, weight, _ in section if weight < 1})
    mixed, last, fewer = torch.zeros_like(whole), 0.0, whole
    for number, level in enumerate(levels):
        mixed = mixed + (level - last) * fewer
        gone = levels[: number + 1]
        tokens = [
            [(MASK_TOKEN if w in gone else t, mine[1], word) for (t, w, word), mine in zip(section, row, strict=True)]
            for section, row in zip(sections, weighted, strict=True)
        ]
        fewer, last = encode(tokens), level
    return mixed + (1.0 - last) * fewer


def weigh(way: str, sections, encode: EncodeTokens, empty: Tensor) -> Tensor:
    """A weighted prompt ``(1, T, D)``.

    Args:
        way: which family.
        sections: tokens with weight and word id.
        encode: tokens, weighted as the stock encoder weighs -> ``(1, T, D)``.
        empty: the empty prompt ``(1, L, D)``.
    """
    weights = weights_of(sections)
    whole = encode(plain(sections))
    if way == "A1111":
        weighted = whole * weights
        return (whole.mean() / weighted.mean()) * weighted
    if way == "scaled":
        return whole * weights
    if way == "down":
        highest = float(weights.max())
        return lowered(
            with_weights(sections, lambda w, word: w / highest if word else 1.0), plain(sections), whole, encode
        )
    if way == "compel":
        raised = with_weights(sections, lambda w, word: max(w, 1.0))
        return lowered(sections, raised, encode(raised), encode)
    if way == "comfy++":
        made = lowered(sections, plain(sections), whole, encode)
        for word in dict.fromkeys(word for section in sections for _, w, word in section if w > 1):
            mine = torch.tensor([float(item[2] == word) for section in sections for item in section]).reshape(1, -1, 1)
            lacking = encode(without(plain(sections), lambda _, other, word=word: other == word))
            made = made + (weights - 1) * mine * (whole - lacking)
        return made
    if way == "perp":
        zero = empty.repeat(1, whole.shape[1] // empty.shape[1], 1)
        part = (zero * whole).sum(-1, keepdim=True) / whole.norm(dim=-1, keepdim=True) ** 2 * whole
        made = torch.where(weights > 1, whole + weights * part, whole - (1 - weights) * part)
        return torch.where(weights == 1, whole, torch.where(weights == 0, zero, made))
    raise ValueError(way)


# Encoders ---------------------------------------------------------------------------------------------------------


def name_of(clip) -> str:
    return clip.cond_stage_model.clip_name


def stock(clip, text):
    """CLIP Text Encode."""
    return nodes.CLIPTextEncode().encode(clip, text)[0]


def pieces(clip, text):
    """Each piece between BREAK encoded alone, one after the other; no dictionary of the CLIP's is kept."""
    made = [
        clip.encode_from_tokens(clip.tokenize(part), return_pooled=True)[0]
        for part in text.replace(", ", " BREAK ", 1).split("BREAK")
    ]
    return [[torch.cat(made, dim=1), {"pooled_output": None}]]


def weighed_after(way: str, norm: str = "none"):
    """The weighting is done with what the CLIP gives, call by call."""

    def encode(clip, text):
        name = name_of(clip)

        def call(sections):
            return clip.encode_from_tokens({name: [[(t, w) for t, w, _ in section] for section in sections]})

        sections = normalized(clip.tokenize(text, return_word_ids=True)[name], norm)
        empty = clip.encode_from_tokens(clip.tokenize(""))
        return [[weigh(way, sections, call, empty), {"pooled_output": None}]]

    return encode


def weighed_inside(way: str, norm: str = "none", change: Callable[[Tensor], Tensor] = lambda made: made):
    """The weighting is an object patch on a clone of the CLIP, which wants every field of a token."""

    def encode(clip, text):
        clip = clip.clone()
        key = f"{clip.cond_stage_model.clip}.encode_token_weights"
        original = clip.patcher.get_model_object(key)
        empty = clip.tokenize("", return_word_ids=True)[name_of(clip)]

        def patched(sections):
            if any(len(item) != 3 for section in sections for item in section):
                raise ValueError("expected 3 fields of a token")

            def call(tokens):
                return original([[(t, w) for t, w, _ in section] for section in tokens])[0]

            return change(weigh(way, normalized(sections, norm), call, call(empty))), None

        clip.patcher.add_object_patch(key, patched)
        return clip.encode_from_tokens_scheduled(clip.tokenize(text, return_word_ids=True))

    return encode


def with_signs(clip, text):
    """Two rows for each token, the second negative where its weight is: an object patch; the MODEL takes them apart."""
    clip = clip.clone()
    key = f"{clip.cond_stage_model.clip}.encode_token_weights"
    original = clip.patcher.get_model_object(key)

    def patched(sections):
        positive = original([[(item[0], abs(item[1])) for item in section] for section in sections])[0]
        signs = torch.tensor([-1.0 if item[1] < 0 else 1.0 for section in sections for item in section])
        return torch.stack([positive, positive * signs[:, None]], dim=2).flatten(1, 2), None

    clip.patcher.add_object_patch(key, patched)
    return stock(clip, text)


def keys_and_values(model):
    """Even rows are keys, odd ones values, as :func:`with_signs` gives them."""
    model = model.clone()
    model.set_model_attn2_patch(lambda n, context, value, options: (n, context[:, 0::2], value[:, 1::2]))
    return model


def replaced_for_a_while(clip, text):
    """The encode method is another one on the module itself, while the node runs."""
    clip.load_model()  # or the method would be that of a patched clone
    inner = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
    original = inner.encode_token_weights

    def scaled(sections):
        whole = original([[(item[0], 1.0) for item in section] for section in sections])[0]
        weighted = whole * weights_of(sections)
        return whole.mean() / weighted.mean() * weighted, None

    inner.encode_token_weights = scaled
    try:
        return stock(clip, text)
    finally:
        del inner.encode_token_weights


def tokens_of_its_own(clip, text):
    """Tokenizer and encode method are others while the node runs, and what goes between them only they can read."""
    clip.load_model()  # or the method would be that of a patched clone
    tokenizer = getattr(clip.tokenizer, clip.tokenizer.clip)
    inner = getattr(clip.cond_stage_model, clip.cond_stage_model.clip)
    tokenize, original = tokenizer.tokenize_with_weights, inner.encode_token_weights
    tokenizer.tokenize_with_weights = lambda *a, **k: [
        ([[t for t, _ in section]], [[w for _, w in section]]) for section in tokenize(*a, **k)
    ]
    inner.encode_token_weights = lambda pairs: original(
        [list(zip(tokens[0], weights[0], strict=True)) for tokens, weights in pairs]
    )
    try:
        return stock(clip, text)
    finally:
        del tokenizer.tokenize_with_weights, inner.encode_token_weights


def travel(clip, text):
    """A prompt for each of two pictures, each a blend of two prompts; no dictionary of the CLIP's is kept."""
    here, there = (
        clip.encode_from_tokens(clip.tokenize(words), return_pooled=True)[0] for words in (text, f"{text}, at night")
    )
    blends = [there * share + here * (1.0 - share) for share in (0.0, 1 / 3)]
    return [[torch.cat(blends), {"pooled_output": None}]]


# Nodes ------------------------------------------------------------------------------------------------------------

PROMPT = "a (photo:1.2) of ({S}:1.3), in a (garden:0.8)"


def as_it_is(encode):
    return encode(PROMPT)


def multiplied(encode):
    return nodes.ConditioningMultiply().multiply(encode(PROMPT), 1.25)[0]


def of_the_angle(encode):
    """A spherical mix with another prompt."""
    (high, extra), (low, _) = encode(PROMPT)[0], encode("a room")[0]
    low = low.repeat(1, high.shape[1] // low.shape[1], 1)[:, : high.shape[1]]
    angle = torch.acos(((low / low.norm()) * (high / high.norm())).sum())
    return [[((0.4 * angle).sin() * low + (0.6 * angle).sin() * high) / angle.sin(), extra]]


def with_noise(encode):
    """Noise takes a tenth of the prompt's place."""
    tensor, extra = encode(PROMPT)[0]
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(11))
    return [[tensor * 0.9 + noise * 0.1, extra]]


class Couple(comfy.hooks.TransformerOptionsHook):
    """A hook that draws a second prompt in the right half of the picture, by cross-attention (attention couple)."""

    def __init__(self, region: Tensor) -> None:
        super().__init__(hook_scope=comfy.hooks.EnumHookScope.HookedOnly)
        self.region = [region]
        self.transformers_dict = {"patches": {"attn2_patch": [self.before], "attn2_output_patch": [self.after]}}

    def clone(self):
        new = super().clone()
        new.region = self.region
        return new

    def before(self, n, context, value, options):
        region = self.region[0].to(context).repeat(context.shape[0], 1, 1)
        times = region.shape[1] // context.shape[1] or 1
        context = context.repeat(1, times, 1)
        region = region.repeat(1, context.shape[1] // region.shape[1], 1)
        both = torch.cat([context, region])
        return n.repeat(2, 1, 1), both, both

    def after(self, n, options):
        here, there = n.chunk(2)
        side = int(n.shape[1] ** 0.5)
        right = (torch.arange(n.shape[1]) % side >= side // 2)[None, :, None].to(n)
        return here * (1 - right) + there * right


def coupled(encode):
    """The concept stands in the region only."""
    base, region = encode("a room"), encode(PROMPT)
    group = comfy.hooks.HookGroup()
    group.add(Couple(region[0][0]))
    return comfy.hooks.set_hooks_for_conditioning(base, group)


NODES = {
    "as it is": as_it_is,
    "Concat": concat("in a room", PROMPT),
    "Average": average(PROMPT, "a room", 0.7),
    "Multiply": multiplied,
    "Area and Combine": area,
    "Mask and Combine": masked,
    "Timestep Range": ranged,
    "Slerp": of_the_angle,
    "Noise": with_noise,
    "Attention Couple": coupled,
}
ENCODERS = {
    "CLIP Text Encode": stock,
    "BREAK, piece by piece": pieces,
    "A1111, outside": weighed_after("A1111"),
    "A1111 length+mean, outside": weighed_after("A1111", "length+mean"),
    "weights without mean, outside": weighed_after("scaled"),
    "compel, outside": weighed_after("compel", "mean"),
    "comfy++, outside": weighed_after("comfy++", "length"),
    "down-weight, outside": weighed_after("down"),
    "perpendicular, outside": weighed_after("perp"),
    "A1111, inside": weighed_inside("A1111"),
    "comfy++ mean, inside": weighed_inside("comfy++", "mean"),
    "compel and factor, inside": weighed_inside("compel", "none", lambda made: made * 0.9),
    "perpendicular, inside": weighed_inside("perp"),
    "negative weights, two rows a token": with_signs,
    "replaced while the node runs": replaced_for_a_while,
    "tokens of its own": tokens_of_its_own,
    "prompt travel": travel,
}
