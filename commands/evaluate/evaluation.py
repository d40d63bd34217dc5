"""The evaluation itself: choose people, let networks look at their photos, draw, let them look at the pictures, report."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from commands.batch.api_workflow import ApiWorkflow, read_workflow
from commands.batch.drawing import draw
from commands.batch.filling import Filling
from commands.batch.jobs import Plan
from commands.batch.prepared import Work
from commands.batch.results import Results
from commands.batch.slots import Slots, find_slots, trigger
from e4t_core.files.whole_file import replacing

from .faults import EvaluationError
from .folder import REPORT, SCORES, Folder
from .likeness import Bounds, bounds, calibrate
from .networks.choose import identity_networks
from .networks.clip import Clip
from .people import Choice, Person, choose_people, copy_concepts
from .plot import plot
from .prompt_classes import SHIPPED, Prompt, read_classes
from .report import PLOT, Content, Judged, text
from .rows import PICTURES, Row, drawn, looks, scored, write
from .seen import Look, Seen
from .tables import adherence, figures

log = logging.getLogger(__name__)
USUAL_TRIGGER = "S*"


@dataclass(frozen=True)
class Judge:
    """A network with what it said, and what it measures people by."""

    seen: Seen
    bounds: Mapping[int, Bounds]


@dataclass(frozen=True)
class Task:
    """What is drawn: a workflow with the prompts in their places."""

    workflow: ApiWorkflow
    slots: Slots
    prompts: Sequence[Prompt]


def evaluate(options: argparse.Namespace) -> int:
    """Does what the arguments say; the number of jobs that failed.

    Raises:
        EvaluationError: something cannot be used.
        BatchError: the workflow, the prompts or the server cannot be worked with.
    """
    choice = Choice(options.least, options.most, options.people, options.choice)
    task = _task(options) if options.workflow else None
    people, fitting = choose_people(options.photos.absolute(), choice)
    # Networks come before the server: a wrong file is said before a night of drawing.
    networks = identity_networks(options.identity)
    clip_network = Clip(options.clip) if options.clip else None
    with Folder(options.out.absolute()) as folder:
        folder.keep({"people": [[photo.digest for photo in person.photos] for person in people]})
        if task:
            asked = [[p.row.prompt, p.row.seed, p.group, p.plain, p.row.inputs] for p in task.prompts]
            folder.keep({"workflow": task.workflow.nodes, "prompts": asked})
        looked_at = folder.own / "embeddings"
        judges = [_judge(Seen(network, looked_at), people) for network in networks]
        clip = _judge(Seen(clip_network, looked_at), people) if clip_network else None
        work = _drawn(options, task, people, folder) if task else None
        rows: list[Row] = []
        if task and work:
            pictures = drawn(work, task.prompts)
            for judge in [*judges, *([clip] if clip else [])]:
                judge.seen.look(looks(pictures, folder.path), "pictures")
            pairs = [(judge.seen, judge.bounds) for judge in judges]
            plain = list(dict.fromkeys(prompt.plain for prompt in task.prompts))
            texts = dict(zip(plain, clip_network.texts(plain), strict=True)) if clip_network else None
            rows = scored(pictures, pairs, (clip.seen, clip.bounds) if clip else None, texts)
            write(rows, folder.path / SCORES)
        content = Content(
            options.name or (task.workflow.path.stem if task else "Photos"),
            choice,
            fitting,
            sum(len(person.photos) for person in people),
            len(task.prompts) if task else 0,
            sum(row.drawn.file is None for row in rows),
            clip_network.architecture if clip_network else "",
            {judge.seen.network.name: _judged(judge, people, rows) for judge in judges},
            adherence(rows, clip.bounds) if clip else [],
        )
        _report(content, folder.path)
        return content.failed


def _task(options: argparse.Namespace) -> Task:
    path = options.workflow.absolute()
    # Workflows of other packs have no node that says where photo and prompt go.
    workflow = read_workflow(path, learns=not (options.photo and options.prompt))
    slots = find_slots(workflow, options.photo, options.prompt, options.seed)
    word = options.trigger or trigger(workflow) or USUAL_TRIGGER
    if options.draws > 1 and not slots.seed:
        raise EvaluationError(
            f"--draws {options.draws} needs seeds, and {path.name} has no single node that takes one: say with --seed which"
            " input does, such as --seed KSampler.seed."
        )
    prompts = read_classes(
        (options.prompts or SHIPPED).absolute(), word, options.word, options.draws if slots.seed else None
    )
    return Task(workflow, slots, prompts)


def _judge(seen: Seen, people: Sequence[Person]) -> Judge:
    """The network, which has looked at all photos."""
    photos = [photo for person in people for photo in person.photos]
    seen.look((Look(photo.digest, photo.picture) for photo in photos), "photos")
    if not any(seen.found(person.concept.digest) for person in people):
        raise EvaluationError(
            f"{seen.network.name} finds no face in any of the {len(people)} photos that would be learned: check the folder"
            " and the network."
        )
    made = bounds(seen, people)
    if len(made) < len(people):
        log.warning(
            "%s can judge %d of %d people: it finds a face in no other photo of the others.",
            seen.network.name,
            len(made),
            len(people),
        )
    faceless = [person.number for person in people if not seen.found(person.concept.digest)]
    if faceless:
        log.warning(
            "%s finds no face in the learned photo of %d of %d people, the first is number %d; they count with the floor.",
            seen.network.name,
            len(faceless),
            len(people),
            faceless[0],
        )
    return Judge(seen, made)


def _drawn(options: argparse.Namespace, task: Task, people: Sequence[Person], folder: Folder) -> Work:
    """The batch, drawn to its end."""
    learned = copy_concepts(people, folder.path / "photos")
    rows = [prompt.row for prompt in task.prompts]
    plan = Plan(Filling(task.workflow, task.slots, rows), learned, rows)
    results = Results(folder.path / PICTURES)
    left = [job for job in plan.jobs if not results.is_done(job, options.retry_failed)]
    log.info(
        "%d people, %d prompts: %d pictures, %d of them done already.",
        len(people),
        len(rows),
        len(plan.jobs),
        len(plan.jobs) - len(left),
    )
    work = Work(plan, left, results)
    draw(work, options.server, options.headers, options.wait)
    return work


def _judged(judge: Judge, people: Sequence[Person], rows: Sequence[Row]) -> Judged:
    seen = judge.seen
    return Judged(
        calibrate(seen, people),
        [person.number for person in people if person.number not in judge.bounds],
        [person.number for person in people if not seen.found(person.concept.digest)],
        figures(rows, seen.network.name, judge.bounds),
    )


def _report(content: Content, folder: Path) -> None:
    shown = {name: judged.figures for name, judged in content.judged.items() if judged.figures}
    try:
        if shown:
            with replacing(folder / PLOT) as temporary:
                plot(shown, content.adherence, temporary)
        with replacing(folder / REPORT) as temporary:
            temporary.write_text(text(content), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"The report in {folder} cannot be written ({error.strerror}): make room.") from error
    log.info("%s", text(content))
    log.info("In %s: %s%s.", folder, REPORT, f", and a line for each picture in {SCORES}" if content.prompts else "")
