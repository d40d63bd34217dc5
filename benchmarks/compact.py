"""``python -m benchmarks.compact``: how small may a concept be kept, and what is lost?

Each validation individual is learned once from one photo, and its changes are kept in many forms; all forms are drawn with
the same prompts and noise as in ``quality``, and read by both judges. A form's scores are shares of the exact form's, with
95 % limits from resamples of individuals, paired:

* identity: NAMED and likeness, each the mean of both judges;
* prompt: PROMPT, the mean of both judges.

The gates, set before anything was measured: a compact form keeps at least 0.99 of identity by NAMED AND by likeness, and 0.98
of PROMPT, and takes at most 10 MB at Stable Diffusion 1.5's shapes with all that the file needs besides. The smallest form
that does is the one to use. "Static" forms have no gate: they say what is lost where nothing refines the word.

Forms that are not drawn are compared by noise predictions, which is cheap (``--probes``: nothing else): by how much they differ
from the exact form's for the photo, as a share of what tuning moved. That does not replace pictures: a form that does a little
less of everything is near by that measure, and less like the person. The same is said of each kind of layer, left out.

Pictures and tuned concepts are kept in runs/compact, so an interrupted run goes on. It leaves results.jsonl, table.md and
plot.png there.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from commands.progress import Progress
from e4t_core.files.checked_file import write_tensors
from e4t_core.files.compact_body import description_from_json, pack, unpack
from e4t_core.methods.compact_fit import CompactFitSettings
from e4t_core.weight_changes import LowRank
from miniworld.models import load_judges

from . import host
from .arms import SAMPLING, WEIGHTS, Drawer, Subject, load_subjects
from .compact_concepts import KIND, Studio, Tuned
from .compact_forms import EXACT, FORMS, Form, changed, sd15_always, sd15_bytes, sd15_shapes, stock_changes
from .compact_plot import plot
from .compact_probes import probe_rows
from .compact_report import BYTES_GATE, IDENTITY_GATE, PROMPT_GATE, Result, markdown, results
from .picture_cache import cached, that_count
from .prompts import targets
from .quality import kept_visibility
from .quality_report import ArmScores
from .report import gate, table
from .scoring import score

ROOT = host.ROOT / "runs" / "compact"
SPLIT, DOMAIN = "validation", "face"
PROBED = 2  # faces whose noise predictions are compared
# Another number where the fit's own code changes what comes out: kept pictures are of one fit.
FITTED = 2


class Painter:
    """Draws individuals in forms, keeping what it has made."""

    def __init__(self, identities: int) -> None:
        self.people = load_subjects(SPLIT, identities, DOMAIN)
        self.drawer = Drawer(1, {}, DOMAIN)
        weights = host.weights_fingerprint("base", "text", "vae", "backbone", WEIGHTS[DOMAIN])
        decides = json.dumps([weights, that_count(self.drawer.settings()), asdict(SAMPLING)])
        self.folder = ROOT / hashlib.sha256(decides.encode()).hexdigest()[:12]
        self._studio: Studio | None = None

    @property
    def studio(self) -> Studio:
        self._studio = self._studio or Studio(self.drawer, DOMAIN)
        return self._studio

    def pictures(self, subject: Subject, form: Form) -> torch.Tensor:
        """``(11, 3, 128, 128)``, drawn now if they are not kept."""
        slug = hashlib.sha256(
            repr((replace(form, name="", drawn=True), FITTED if form.fitted else 0)).encode()
        ).hexdigest()[:12]
        return cached(self.folder / slug / _who(subject), lambda: self._draw(subject, form))

    def tuned(self, subject: Subject, unet_rank: int = 0) -> Tuned:
        """A subject's concept, learned now if it is not kept."""
        return Tuned.kept(self.folder / f"tuned-{unet_rank}" / _who(subject), self.drawer, subject, unet_rank)

    def changes(self, subject: Subject, form: Form) -> tuple[dict[str, Tensor], Any]:
        """The UNet's differences and the encoder of a subject in a form that is not a stock LoRA."""
        tuned = self.tuned(subject, form.unet_rank)
        fitted = self._fitted(subject, tuned, form) if form.fitted else None
        return changed(form, tuned, self.studio.domain.encoder, fitted)

    def _fitted(self, subject: Subject, tuned: Tuned, form: Form) -> dict[str, Tensor | LowRank]:
        """Fitted now if it is not kept."""
        settings = form.settings()
        folder = f"fitted-{hashlib.sha256(repr((settings, CompactFitSettings(), FITTED)).encode()).hexdigest()[:12]}"
        path = self.folder / folder / _who(subject)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            tensors, described = pack(self.studio.fitted(tuned, settings), {}, settings)
            write_tensors(path, tensors, {"described": json.dumps(described.to_json())}, KIND)
        with safe_open(path, "pt") as file:
            described = description_from_json(json.loads(file.metadata()["described"]))
            body = unpack({name: file.get_tensor(name) for name in file.keys()}, described)  # noqa: SIM118
        return {change.name: change if isinstance(change, LowRank) else change.difference() for change in body.weights}

    def _draw(self, subject: Subject, form: Form) -> torch.Tensor:
        tuned, studio = self.tuned(subject, form.unet_rank), self.studio
        shared: dict[str, Any] | None
        if form.stock:
            differences, encoder, shared = stock_changes(form, tuned, studio.shared), studio.domain.encoder, {}
        else:
            (differences, encoder), shared = self.changes(subject, form), None
        held = studio.held(tuned, differences, encoder, form.name, shared, refine=not form.static)
        return studio.pictures(studio.base(held), subject, refined=not form.static)


def _who(subject: Subject) -> str:
    return f"{subject.number:02d}-{hashlib.sha256(subject.identity.order()).hexdigest()[:16]}.safetensors"


def scored(people: list[Subject], pictures: dict[str, list[torch.Tensor]]) -> dict[str, dict[str, ArmScores]]:
    """judge -> form -> scores."""
    wanted = [t for p in people for t in targets(p.identity, p.prompts)]
    seen = kept_visibility(SPLIT, wanted)
    photos = [p.scene for p in people for _ in p.prompts]
    found: dict[str, dict[str, ArmScores]] = {}
    for name, judge in load_judges().items():
        known = judge.read(torch.stack([p.photo for p in people])).identity
        known = known.repeat_interleave(len(people[0].prompts), dim=0)
        strangers = [p.identity for p in people]
        found[name] = {
            form: ArmScores.by_identity(
                score(judge, torch.cat(parts), wanted, seen, strangers, photos, known), len(people)
            )
            for form, parts in pictures.items()
        }
    return found


def main() -> int:
    """The command; its exit status is 1 if no form meets all gates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=8)
    parser.add_argument("--forms", help="comma-separated names; default: all")
    parser.add_argument("--probes", type=int, metavar="FACES", help="only compare noise predictions, of so many faces")
    parser.add_argument("--sizes", action="store_true", help="only print what each form takes at true shapes, as JSON")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.sizes:
        taken = {form.name: sd15_bytes(form) for form in FORMS}
        print(json.dumps({"bytes": taken, "always": sd15_always(), "shapes": sd15_shapes()}))
        return 0
    torch.set_num_threads(options.threads)
    if options.probes:
        print(probe_table(Painter(options.probes)))
        return 0
    chosen = set(options.forms.split(",")) if options.forms else {form.name for form in FORMS if form.drawn}
    unknown = sorted(chosen - {form.name for form in FORMS})
    if unknown:
        parser.error(f"there is no form {unknown[0]!r}; there are: {', '.join(form.name for form in FORMS)}")
    forms = [form for form in FORMS if form.name in chosen or form == EXACT]
    started, painter = time.monotonic(), Painter(options.identities)
    pictures: dict[str, list[torch.Tensor]] = {form.name: [] for form in forms}
    for number in Progress(range(options.identities), desc=SPLIT):
        for form in forms:
            pictures[form.name].append(painter.pictures(painter.people[number], form))
    found = results(scored(painter.people, pictures), forms, options.identities)
    print(f"{options.identities} validation {DOMAIN}s, 11 prompts each, {time.monotonic() - started:.0f} s\n")
    print(lines := markdown(found))
    probed = probe_table(Painter(PROBED))
    print(f"\n{probed}")
    write(found, f"{lines}\n\n{probed}")
    small = [r for r in found if r.bytes <= BYTES_GATE and not r.form.static]
    best = min((r for r in small if r.is_kept), key=lambda r: r.bytes, default=None)
    print()
    for result in small:
        lowest = min(result.named.value, result.likeness.value)
        gate(f"{result.form.name}: identity, the lower of both shares", lowest, least=IDENTITY_GATE)
        gate(f"{result.form.name}: share of PROMPT", result.prompt.value, least=PROMPT_GATE)
    print(f"\nthe smallest that meets all gates: {best.form.name if best else 'none'}")
    return 0 if best else 1


def probe_table(painter: Painter) -> str:
    """What each form changes of noise predictions, as a share of what tuning moved."""
    rows = probe_rows(painter.studio, [(painter.tuned(one), partial(painter.changes, one)) for one in painter.people])
    return table(("kept", "MB at SD 1.5", *(f"face {n + 1}" for n in range(len(painter.people)))), rows)


def write(found: list[Result], lines: str) -> None:
    """The table, the plot, and a line for each form."""
    ROOT.mkdir(parents=True, exist_ok=True)
    (ROOT / "table.md").write_text(lines + "\n", encoding="utf-8")
    records = [json.dumps({**asdict(r), "form": asdict(r.form)}) for r in found]
    (ROOT / "results.jsonl").write_text("\n".join(records) + "\n", encoding="utf-8")
    plot(found, ROOT / "plot.png")


if __name__ == "__main__":
    raise SystemExit(main())
