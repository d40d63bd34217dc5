"""Workflows that a batch is made of: which inputs it fills, what makes two jobs the same, and what is no such workflow."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from commands.batch.api_workflow import ApiWorkflow, WorkflowError, read_workflow
from commands.batch.faults import BatchError
from commands.batch.filling import Filling
from commands.batch.jobs import Plan, prompt
from commands.batch.photos import Photo
from commands.batch.prompts import Row
from commands.batch.slots import Slot, find_slots, named, trigger
from e4t_core.methods.registered import SIBLINGS

WORKFLOWS = Path(__file__).parents[2] / "workflows"
ANNA, BEN = (Photo(Path(f"{name}.jpg"), name, name * 16) for name in ("anna", "bens"))


def shipped(name: str = "one_photo") -> ApiWorkflow:
    return read_workflow(WORKFLOWS / "api" / f"{name}.json")


def changed(tmp_path: Path, **nodes: dict[str, Any]) -> ApiWorkflow:
    """The shipped workflow with nodes put in or replaced: `n12={...}`."""
    made = {**shipped().nodes, **{number.removeprefix("n"): node for number, node in nodes.items()}}
    (tmp_path / "w.json").write_text(json.dumps(made))
    return read_workflow(tmp_path / "w.json")


def test_photo_prompt_and_seed_are_found_in_the_shipped_workflow() -> None:
    slots = find_slots(shipped())
    assert (slots.photo, slots.prompt, slots.seed) == (
        (Slot("2", "image"),),
        (Slot("5", "text"),),
        (Slot("8", "seed"),),
    )


@pytest.mark.parametrize("name", ["save_and_reuse", "export_to_lora", *(kind.name for kind in SIBLINGS)])
def test_every_shipped_workflow_of_one_photo_needs_no_names(name: str) -> None:
    slots = find_slots(shipped(name), seed=["KSampler.seed"])
    assert len(slots.photo) == len(slots.prompt) == len(slots.seed) == 1


def test_inputs_are_named_by_title_or_id() -> None:
    assert named(shipped(), "Prompt.text") == named(shipped(), "5.text") == Slot("5", "text")
    assert named(shipped(), "E4T Personalize.trigger") == Slot("4", "trigger")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Promt.text", "names no node of one_photo.json: it has Base model, "),
        ("Prompt.txt", "names no input: the node has clip, text"),
        ("text", "names no input: write the node's title or id, a dot, and the input"),
        ("Prompt.clip", "is wired"),
    ],
)
def test_a_wrong_name_is_said_with_the_right_ones(name: str, said: str) -> None:
    with pytest.raises(WorkflowError) as error:
        named(shipped(), name)
    assert said in str(error.value)


def test_a_title_that_two_nodes_have_is_said_with_their_ids(tmp_path: Path) -> None:
    second = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": ""}, "_meta": {"title": "Prompt"}}
    workflow = changed(tmp_path, n12=second)
    with pytest.raises(WorkflowError, match=r"write one of 12\.text, 5\.text"):
        named(workflow, "Prompt.text")
    # A title with a dot, and nodes without a title, which have their class's.
    third = {"class_type": "CLIPTextEncode", "inputs": {"text": ""}, "_meta": {"title": "v1.5 prompt"}}
    workflow = changed(tmp_path, n12=third, n13={"class_type": "PrimitiveFloat", "inputs": {"value": 1.5}})
    assert named(workflow, "v1.5 prompt.text") == Slot("12", "text")
    assert named(workflow, "PrimitiveFloat.value") == Slot("13", "value")


def test_the_editors_format_is_refused_with_the_way_to_export() -> None:
    with pytest.raises(WorkflowError, match=r"File, Export \(API\)"):
        read_workflow(WORKFLOWS / "one_photo.json")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is no JSON"),
        ("\x89PNG", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "holds no workflow"),
        ("{}", "holds no workflow"),
        ('{"1": {"class_type": "LoadImage"}}', "its node '1' is none"),
        ('{"1": {"class_type": "LoadImage", "inputs": {"a": ["7", 0]}}}', "its node '1' is none"),
        ('{"1": {"class_type": "LoadImage", "inputs": {}}}', "has no node that learns a photo"),
    ],
)
def test_what_is_no_workflow_that_learns_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "w.json").write_text(text)
    with pytest.raises(WorkflowError, match="w.json") as error:
        read_workflow(tmp_path / "w.json")
    assert said in str(error.value)
    assert "Export (API)" in str(error.value) or "export it again" in str(error.value)


def two_people(tmp_path: Path, photo: str) -> ApiWorkflow:
    first = shipped().nodes["4"]["inputs"]
    second = {**first, "model": ["4", 0], "clip": ["4", 1], "image": [photo, 0], "mask": [photo, 1], "trigger": "B*"}
    loads = {"class_type": "LoadImage", "inputs": {"image": "second.png"}, "_meta": {"title": "Second photo"}}
    return changed(tmp_path, n12=loads, n14={"class_type": "E4TPersonalize", "inputs": second})


def test_with_two_learning_nodes_the_photo_has_to_be_named(tmp_path: Path) -> None:
    workflow = two_people(tmp_path, "12")
    with pytest.raises(
        WorkflowError, match=r"several nodes that learn, 4 \(E4T Personalize\) and 14 .*--photo 12\.image"
    ):
        find_slots(workflow)
    assert find_slots(workflow, photo=["Second photo.image"]).photo == (Slot("12", "image"),)
    # One photo for both is no question.
    assert find_slots(two_people(tmp_path, "2")).photo == (Slot("2", "image"),)


def test_without_a_text_that_holds_the_trigger_the_prompt_has_to_be_named(tmp_path: Path) -> None:
    silent = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["4", 1], "text": "a face"}}
    with pytest.raises(WorkflowError, match=r"no text holds the trigger S\*: say with --prompt"):
        find_slots(changed(tmp_path, n5=silent))
    assert find_slots(changed(tmp_path, n5=silent), prompt=["5.text"]).prompt == (Slot("5", "text"),)


def test_seeds_need_one_node_that_takes_them(tmp_path: Path) -> None:
    again = {"class_type": "KSampler", "inputs": {**shipped().nodes["8"]["inputs"], "latent_image": ["8", 0]}}
    workflow = changed(tmp_path, n12=again)
    assert find_slots(workflow).seed == ()
    with pytest.raises(BatchError, match="say with --seed"):
        Filling(workflow, find_slots(workflow), [Row(2, "S*", 5)])
    both = Filling(workflow, find_slots(workflow, seed=["8.seed", "12.seed"]), [Row(2, "S*", 5)])
    filled = both.filled("anna.png", Row(2, "S*", 5))
    assert (filled["8"]["inputs"]["seed"], filled["12"]["inputs"]["seed"]) == (5, 5)


def plan(rows: list[Row], photos: list[Photo] | None = None, workflow: ApiWorkflow | None = None) -> Plan:
    workflow = workflow or shipped()
    return Plan(Filling(workflow, find_slots(workflow), rows), photos or [ANNA, BEN], rows)


def test_jobs_of_one_photo_are_in_a_row_and_repeated_ones_are_one() -> None:
    made = plan([Row(2, "S*"), Row(3, "S* in oil"), Row(4, "S*"), Row(5, "S*", 1), Row(6, "S*", 2)])
    assert [(job.photo.concept, job.row.line) for job in made.jobs] == [
        *(("anna", 2), ("anna", 3), ("anna", 6)),
        *(("bens", 2), ("bens", 3), ("bens", 6)),
    ]
    assert made.repeated == 4
    assert [job.seed for job in made.jobs[:3]] == [1, 1, 2]


def test_a_jobs_key_is_of_its_content_alone() -> None:
    (job,) = plan([Row(2, "S*", 1)], [ANNA]).jobs
    (again,) = plan([Row(9, "S*", 1)], [Photo(Path("elsewhere/else.jpg"), "else", ANNA.digest)]).jobs
    assert job.key == again.key
    assert job.prompt_id("batch", 1) == again.prompt_id("batch", 1)
    ids = {job.prompt_id("batch", 1), job.prompt_id("batch", 2), job.prompt_id("other", 1)}
    assert len(ids) == 3
    others = [plan([Row(2, "S*", 2)], [ANNA]), plan([Row(2, "S!", 1)], [ANNA]), plan([Row(2, "S*", 1)], [BEN])]
    others += [plan([Row(2, "S*", 1, (("KSampler.cfg", "4"),))], [ANNA])]
    assert job.key not in {other.jobs[0].key for other in others}


def test_everything_that_a_job_saves_is_named_after_it() -> None:
    made = plan([Row(2, "S* at sea", 3)], [ANNA], shipped("save_and_reuse"))
    filled = prompt(made.filling, made.jobs[0], "e4t_batch/x.png", "b")
    assert filled["2"]["inputs"]["image"] == "e4t_batch/x.png"
    assert filled["5"]["inputs"]["name"] == "anna_annaanna"
    assert filled["13"]["inputs"]["filename_prefix"] == f"e4t_batch/b/{made.jobs[0].key[:16]}"
    assert made.jobs[0].file(2, ".png") == f"anna/s-at-sea_{made.jobs[0].key[:12]}_2.png"
    assert shipped("save_and_reuse").nodes["5"]["inputs"]["name"] == "my_face"


@pytest.mark.parametrize(
    ("column", "text", "said"),
    [
        ("KSampler.cfg", "high", r"column KSampler\.cfg does not fit in line 7: 'high' is no number"),
        ("KSampler.steps", "2.5", "'2.5' is no whole number"),
        ("KSampler.stepz", "2", "A column of the prompts cannot be used"),
        ("notes", "nice", "A column of the prompts cannot be used"),
    ],
)
def test_a_column_that_fits_no_input_is_said_before_anything_runs(column: str, text: str, said: str) -> None:
    with pytest.raises(BatchError, match=said):
        plan([Row(7, "S*", None, ((column, text),))])


def test_columns_become_what_their_inputs_hold() -> None:
    made = plan([Row(2, "S*", None, (("KSampler.cfg", "4"), ("KSampler.steps", "9"), ("Negative prompt.text", "7")))])
    filled = prompt(made.filling, made.jobs[0], "x.png", "b")
    assert (filled["8"]["inputs"]["cfg"], filled["8"]["inputs"]["steps"], filled["6"]["inputs"]["text"]) == (
        4.0,
        9,
        "7",
    )


def test_ten_thousand_prompts_for_three_photos_are_planned_in_seconds() -> None:
    begun = time.process_time()
    carl = Photo(Path("carl.jpg"), "carl", "carl" * 16)
    made = plan([Row(number, f"S*, number {number}") for number in range(10_000)], [ANNA, BEN, carl])
    assert len({job.key for job in made.jobs}) == 30_000
    # It takes 2 s.
    assert time.process_time() - begun < 30


def test_a_workflow_of_another_pack_takes_named_inputs_and_has_no_trigger(tmp_path: Path) -> None:
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}},
        "2": {"class_type": "OthersLearn", "inputs": {"image": ["1", 0], "prompt": "a photo of sks"}},
        "3": {"class_type": "KSampler", "inputs": {"model": ["2", 0], "seed": 1}},
    }
    (tmp_path / "w.json").write_text(json.dumps(nodes))
    workflow = read_workflow(tmp_path / "w.json", learns=False)
    slots = find_slots(workflow, ["1.image"], ["2.prompt"])
    assert (slots.photo, slots.prompt, slots.seed) == (
        (Slot("1", "image"),),
        (Slot("2", "prompt"),),
        (Slot("3", "seed"),),
    )
    assert trigger(workflow) is None
