"""The table "encoder x node x sampler" of what happens to a word in other people's graphs.

``python tests/comfyui/prompt_matrix.py`` draws every cell and writes docs/prompt_matrix.md.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    import conftest  # noqa: F401 - sets up ComfyUI in this process

import prompt_packs as packs
import torch
from e4t_pack.nodes.host.learning.result_store import STORE
from oracle import Row, guided, ksample, two_halves
from oracle_world import World, constant, domain_word, with_encoder

FOLLOWED, NEARLY, SAID = "follows", "nearly follows", "fixed, and said"
# Of the largest number in the latent; float32 arithmetic in another order, through a random UNet.
TOLERANCE = 1e-4
# Where a mix at an angle keeps the angle that it had with the fixed word.
NEAR = 1e-2


def samplers():
    import comfy_extras.nodes_custom_sampler as custom
    import comfy_extras.nodes_pag
    import comfy_extras.nodes_perpneg

    return {
        "KSampler": lambda model, conds, **options: ksample(model, conds, steps=1, **options),
        "cfg 1": lambda model, conds, **options: ksample(model, conds, steps=1, cfg=1.0, **options),
        "heun": lambda model, conds, **options: ksample(model, conds, steps=2, sampler="heun", **options),
        "KSampler Advanced, twice": two_halves,
        "CFG Guider": guided(lambda m, c: custom.CFGGuider.execute(m, c["positive"], c["negative"], 4.0), 1),
        "Perp-Neg Guider": guided(
            lambda m, c: comfy_extras.nodes_perpneg.PerpNegGuider.execute(
                m, c["positive"], c["negative"], c["negative"], 4.0, 1.0
            ),
            1,
        ),
        "PAG": lambda model, conds, **options: ksample(
            comfy_extras.nodes_pag.PerturbedAttentionGuidance.execute(model, 3.0).args[0], conds, steps=1, **options
        ),
    }


@dataclass(frozen=True)
class Cell:
    """One graph; ``column`` is a node before the KSampler, or a sampler behind the encoder alone."""

    encoder: str
    column: str

    @property
    def expected(self) -> str:
        """What happens to the word there."""
        if self.encoder == "tokens of its own":
            return SAID
        if self.encoder in UNMARKED and self.column == "Noise":
            return SAID
        return NEARLY if self.encoder in {*WEIGHED, "prompt travel"} and self.column == "Slerp" else FOLLOWED

    def row(self) -> Row:
        """As a row of the oracle matrix."""
        node, sample = packs.NODES.get(self.column, packs.as_it_is), samplers().get(self.column, samplers()["KSampler"])
        travel = self.encoder == "prompt travel"
        return Row(
            f"{self.encoder} / {self.column}",
            lambda encode: {
                "positive": node(encode),
                "negative": encode("blurry")[:1] if not travel else encode("blurry"),
            },
            (lambda model, conds: sample(model, conds, batch=2)) if travel else sample,
            model=packs.keys_and_values if self.encoder == TWO_ROWS else lambda model: model,
        )


WEIGHED = {name for name in packs.ENCODERS if name.endswith("outside")}
UNMARKED = WEIGHED | {"BREAK, piece by piece", "prompt travel"}
TWO_ROWS = "negative weights, two rows a token"
# Two rows of contexts cannot be a region; the mask of the others' latents, not their number, is what the hook knows.
NOT_DRAWN = {("prompt travel", "Attention Couple"), ("prompt travel", "KSampler Advanced, twice")} | {
    ("prompt travel", name) for name in ("CFG Guider", "Perp-Neg Guider")
}


def cells() -> list[Cell]:
    """All of them, encoder by encoder."""
    columns = [*packs.NODES, *(name for name in samplers() if name != "KSampler")]
    every = [Cell(encoder, column) for encoder in packs.ENCODERS for column in columns]
    return [cell for cell in every if (cell.encoder, cell.column) not in NOT_DRAWN]


class PackWorld(World):
    """The oracle's world, with another pack's encoder in place of CLIP Text Encode.

    Args:
        known: what stock nodes encoded, by encoder, text and word; every column of an encoder asks for the same prompts.
    """

    def __init__(self, encoder: str, known: dict, *arguments) -> None:
        super().__init__(*arguments)
        self.encoder, self.known = encoder, known

    def stock(self, vectors):
        self.words = b"".join(vector.detach().numpy().tobytes() for vector in vectors.values())
        return super().stock(vectors)

    def stock_encode(self, text: str) -> list:
        key = (self.encoder, text, self.words)
        if key not in self.known:
            self.known[key] = super().stock_encode(text)
        # Nodes may change what they are given.
        return [[tensor.clone(), dict(extra)] for tensor, extra in self.known[key]]

    def _encode(self, clip, text, words):  # type: ignore[override]
        for name, word in words.items():
            text = text.replace(f"{{{name}}}", word)
        return packs.ENCODERS[self.encoder](clip, text)


class Told(logging.Handler):
    """What refinement says while a cell is drawn."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    def __enter__(self):
        self._logger = logging.getLogger("e4t_pack.nodes.host.sampling.refinement")
        self._level = self._logger.level
        self._logger.setLevel(logging.INFO)
        self._logger.addHandler(self)
        return self

    def __exit__(self, *_):
        self._logger.removeHandler(self)
        self._logger.setLevel(self._level)


@dataclass(frozen=True)
class Drawn:
    """A cell's picture by ours, by stock nodes with the right word and with the fixed one, and what was said."""

    ours: torch.Tensor
    right: torch.Tensor
    fixed: torch.Tensor
    told: str

    @property
    def result(self) -> str:
        """What happened to the word, by picture and by text; or how the two disagree."""
        scale = float(self.right.abs().max())
        follows = float((self.ours - self.right).abs().max()) <= TOLERANCE * scale
        stays = float((self.ours - self.fixed).abs().max()) <= TOLERANCE * scale
        says_fixed = "not refined" in self.told or "cannot be followed" in self.told
        if "none of" in self.told or "not hold" in self.told:
            return f"wrongly said: {self.told}"
        if follows and not stays and not says_fixed:
            return FOLLOWED
        if stays and not follows and says_fixed:
            return SAID
        off = float((self.ours - self.right).abs().max()) / scale
        if off <= NEAR and off < float((self.fixed - self.right).abs().max()) / scale / 20 and not says_fixed:
            return NEARLY
        return f"wrong: off by {off:.1e}, {'fixed, ' if stays else ''}told: {self.told}"


def draw(cell: Cell, base, parts, embeddings, known: dict, change=constant) -> Drawn:
    """One cell with a concept whose word is a constant that differs from the fixed one (or equals it)."""
    only = {"S": parts["S"]}
    changed = with_encoder(only, change, domain_word)
    world = PackWorld(cell.encoder, known, base, changed, cell.row(), embeddings)
    features = torch.zeros((1, changed["S"].concept.predictor.encoder.feature_width))
    with Told() as told:
        ours = world.ours()
    right = world.stock({"S": changed["S"].concept.predictor.word(features)[0]})
    fixed = world.stock({"S": changed["S"].concept.predictor.domain_word_embedding})
    return Drawn(ours, right, fixed, " ".join(told.lines))


def table(results: dict[tuple[str, str], str]) -> str:
    """The table as Markdown; encoders are rows."""
    columns = [*packs.NODES, *(name for name in samplers() if name != "KSampler")]
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for encoder in packs.ENCODERS:
        marks = [
            {FOLLOWED: "✓", NEARLY: "≈", SAID: "fixed"}.get(results.get((encoder, column), ""), "–")
            for column in columns
        ]
        lines.append(f"| {encoder} | {' | '.join(marks)} |")
    return "\n".join(lines)


DOCS = Path(__file__).resolve().parents[2] / "docs" / "prompt_matrix.md"
INTRO = """# Your word in other people's nodes

Many packs weight, mix or schedule prompts in their own way. This table shows what happens to your word there. Each row is a
way to encode a prompt, each column a node or a sampler behind it.

* ✓ The word is refined at every step, as with CLIP Text Encode: the picture is the one that stock ComfyUI draws with the
  same words.
* ≈ The word is refined at every step, but the node mixes prompts at an angle, and keeps the angle that it had first.
* fixed: the node changes the prompt in a way that cannot be followed. Your word is in the picture, but stays the same at
  all steps, and the sampler node says so.
* – does not go together.

"Outside" means that a pack weights what CLIP gives it, "inside" that it changes how CLIP encodes. A1111, compel, comfy++,
down-weight and perpendicular are the weightings of several packs' text encoders; "length" and "mean" are how they
normalize weights first.

"""
OUTRO = """

`python tests/comfyui/prompt_matrix.py` draws every cell and writes this page. The packs' arithmetic is written anew in
`tests/comfyui/prompt_packs.py`.
"""


def main() -> None:
    """Draw every cell and write the page."""
    import tempfile

    from oracle_world import make_parts
    from world import ComfyUNet, make_base, make_domain

    logging.basicConfig(level=logging.ERROR)
    embeddings = Path(tempfile.mkdtemp())
    base = make_base(embeddings=embeddings)
    parts = make_parts(base, make_domain(ComfyUNet(base[0])))
    results, known = {}, {}
    console = logging.getLogger("prompt_matrix")
    console.setLevel(logging.INFO)
    with torch.inference_mode():
        for cell in cells():
            STORE.clear()
            result = draw(cell, base, parts, embeddings, known).result
            results[cell.encoder, cell.column] = result
            console.log(logging.INFO if result == cell.expected else logging.ERROR, "%s: %s", cell, result)
    DOCS.write_text(INTRO + table(results) + OUTRO, encoding="utf-8")


if __name__ == "__main__":
    main()
