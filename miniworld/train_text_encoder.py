"""``train text``: teaches the text encoder to understand captions, before any picture is involved.

As CLIP's text encoder did before Stable Diffusion was trained on it, this one learns what captions mean: from the hidden
state behind the last word (and at the padding, which the UNet attends to as well) linear read-outs must tell everything
that the caption said. A name means a whole person: her named attributes, her geometry and her marks. So the word slot
carries identity as a continuous quantity before the base model ever sees it.

Gate: at least 0.98 of the said attributes are read out right, over unseen captions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attributes import DOMAINS, EDITS, Identity, celebrities, random_identity, random_scene
from .captions import Caption, describe
from .text_encoder import LENGTH, WIDTH, TextEncoder, pad_tokens, tokenize
from .training import Run, Schedule

UNSAID = -100
FILLER_SHARE = 0.15


def _questions() -> dict[str, int]:
    """Every classification read-out and its number of answers; the last answer of most is "not said"."""
    heads = {"domain": len(DOMAINS) + 1}
    heads |= {edit: len(values) + 1 for edit, values in EDITS.items()}
    for domain, spec in DOMAINS.items():
        heads |= {f"{domain} {a}": len(values) + 1 for a, values in spec.named.items()}
        heads |= {f"{domain} mark {place}": len(kinds) + 1 for place, kinds in spec.marks.items()}
    return heads


class _ReadOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.questions = _questions()
        self.classify = nn.Linear(WIDTH, sum(self.questions.values()))
        self.measure = nn.Linear(WIDTH, sum(len(d.geometry) for d in DOMAINS.values()))


class TextTraining(nn.Module):
    """The encoder and the read-outs that are thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = TextEncoder()
        self.read_out = _ReadOut()


def _answers(caption: Caption, questions: dict[str, int]) -> tuple[list[int], list[float]]:
    answers = {name: count - 1 for name, count in questions.items()}
    geometry: list[float] = []
    if caption.domain is not None:
        answers["domain"] = list(DOMAINS).index(caption.domain)
    for edit, values in EDITS.items():
        said = getattr(caption, edit)
        if said is not None and not (edit in ("accessory", "zoom") and said in ("none", "portrait")):
            answers[edit] = values.index(said)
    for domain, spec in DOMAINS.items():
        known = celebrities(domain).get(caption.name or "") if caption.domain == domain else None
        if known is not None:
            answers |= {f"{domain} {a}": i for a, i in zip(spec.named, known.named, strict=True)}
            answers |= {f"{domain} mark {place}": i for place, i in zip(spec.marks, known.marks, strict=True)}
        if caption.domain == domain:
            answers |= {f"{domain} {a}": spec.named[a].index(v) for a, v in caption.named}
        geometry += list(known.geometry) if known is not None else [float("nan")] * len(spec.geometry)
    return [answers[name] for name in questions], geometry


def _draw(rng: np.random.Generator) -> Caption:
    domain = "face" if rng.random() < 0.75 else "cat"
    if rng.random() < 0.5:
        known = celebrities(domain)
        identity: Identity = known[list(known)[int(rng.integers(len(known)))]]
    else:
        identity = random_identity(rng, domain, "train")
    return describe(identity, random_scene(rng), rng)


def _with_filler(tokens: Tensor, caption: Caption, rng: np.random.Generator) -> Tensor:
    """Puts one or two random words in: what this world does not know must not disturb what it knows."""
    if rng.random() > FILLER_SHARE:
        return tokens
    words = list(tokens[1 : 1 + len(tokenize(caption.text))].tolist())
    for _ in range(int(rng.integers(1, 3))):
        words.insert(int(rng.integers(len(words) + 1)), int(rng.integers(300, 49000)))
    words = words[: LENGTH - 2]
    out = tokens.clone()
    out[1 : 1 + len(words)] = torch.tensor(words)
    return out


def evaluate(model: TextTraining, count: int = 512) -> float:
    """Share of said attributes that are read out right from the end token, over captions of a fixed seed."""
    rng = np.random.default_rng(99)
    captions = [_draw(rng) for _ in range(count)]
    with torch.no_grad():
        states = torch.cat(
            [model.encoder(pad_tokens([c.text for c in captions[i : i + 64]])) for i in range(0, count, 64)]
        )
    ends = torch.tensor([1 + len(tokenize(c.text)) for c in captions])
    logits = model.read_out.classify(states[torch.arange(count), ends]).split(
        list(model.read_out.questions.values()), 1
    )
    right, asked = 0, 0
    for row, caption in enumerate(captions):
        answers, _ = _answers(caption, model.read_out.questions)
        for part, answer, size in zip(logits, answers, model.read_out.questions.values(), strict=True):
            if answer != size - 1:
                asked += 1
                right += int(part[row].argmax() == answer)
    return right / asked


def train(folder: Path, schedule: Schedule, batch: int, seed: int) -> TextTraining:
    torch.manual_seed(seed)
    model = TextTraining()
    run = Run(folder, model, schedule)
    questions = model.read_out.questions
    sizes = list(questions.values())

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        rng = np.random.default_rng([seed, step])
        captions = [_draw(rng) for _ in range(batch)]
        tokens = pad_tokens([c.text for c in captions])
        tokens = torch.stack([_with_filler(t, c, rng) for t, c in zip(tokens, captions, strict=True)])
        states = model.encoder(tokens)
        ends = (tokens == 49407).int().argmax(1)
        rows = torch.arange(batch)
        pads = torch.maximum(ends, torch.as_tensor(rng.integers(8, LENGTH, size=batch)))
        answers, geometry = zip(*(_answers(c, questions) for c in captions), strict=True)
        target, shape = torch.tensor(answers), torch.tensor(geometry)
        named = ~shape.isnan()
        value, right = torch.zeros(()), 0.0
        for place in (ends, pads):
            state = states[rows, place]
            logits = model.read_out.classify(state).float().split(sizes, 1)
            for i, part in enumerate(logits):
                value = value + F.cross_entropy(part, target[:, i]) / len(sizes)
                right += float((part.argmax(1) == target[:, i]).float().mean()) / len(sizes) / 2
            error = (model.read_out.measure(state).float() - torch.where(named, shape, 0.5)).square() * named
            value = value + error.sum() / named.sum().clamp_min(1)
        return value, {"right": right}

    run.train(loss)
    return run.finish()
