"""The shipped API workflow in a real ComfyUI over HTTP: it runs, tunes once, can be cancelled, and says what is wrong."""

from __future__ import annotations

import copy
import json
import re
import threading
import time
from collections.abc import Callable

import pytest

from devtools.comfyui_client import Client, Rejected, Run, Workflow
from devtools.places import WORKFLOWS

PERSONALIZE = "4"
MakeWorkflow = Callable[..., Workflow]

UNRELATED: Workflow = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def tuning_steps(run: Run) -> int:
    """How many steps E4T Personalize reported: 0 if it was cached, or found its result in the pack's own store."""
    return len(run.progress.get(PERSONALIZE, []))


def succeeded(run: Run) -> Run:
    assert run.status == "success", run.error.get("exception_message", run.status)
    return run


def test_help_pages_are_served_where_the_frontend_looks_for_them(client: Client) -> None:
    known = json.loads(client.get("/object_info/E4TPersonalize"))["E4TPersonalize"]
    pack = known["python_module"].removeprefix("custom_nodes.")
    assert client.get(f"/extensions/{pack}/docs/E4TPersonalize.md").startswith(b"# E4T Personalize")


def test_the_shipped_workflow_tunes_and_saves_a_picture(client: Client, workflow: MakeWorkflow) -> None:
    run = succeeded(client.run(workflow(E4TPersonalize={"seed": 101})))
    assert tuning_steps(run) > 0
    picture = run.outputs["10"]["images"][0]
    assert client.view(picture).startswith(b"\x89PNG")
    sampler = next(number for number, node in workflow().items() if node["class_type"] == "KSampler")
    assert run.texts[sampler] == ["S* in 1 of 2 prompts"]
    assert "S* learned in" in run.texts[PERSONALIZE][-1]


def test_the_subject_is_looked_for_in_the_photo(client: Client, workflow: MakeWorkflow) -> None:
    """With networks as ComfyUI's executor makes them; these know no subject."""
    made = workflow(E4TPersonalize={"seed": 140, "crop": "subject"})
    # A small photo has few squares to look at.
    small = {"image": made[PERSONALIZE]["inputs"]["image"], "upscale_method": "area", "width": 80, "height": 64}
    made["20"] = {"class_type": "ImageScale", "inputs": {**small, "crop": "disabled"}}
    made[PERSONALIZE]["inputs"]["image"] = ["20", 0]
    run = succeeded(client.run(made))
    assert tuning_steps(run) > 0
    assert "No 'face' was found, so the middle of the photo is learned" in run.texts[PERSONALIZE][-1]


def test_another_prompt_does_not_tune_again(client: Client, workflow: MakeWorkflow) -> None:
    assert tuning_steps(succeeded(client.run(workflow(E4TPersonalize={"seed": 102})))) > 0
    changed = workflow(E4TPersonalize={"seed": 102})
    changed["5"]["inputs"]["text"] = "a watercolor of S*"
    assert tuning_steps(succeeded(client.run(changed))) == 0


def test_an_unrelated_workflow_in_between_does_not_cost_a_tuning(client: Client, workflow: MakeWorkflow) -> None:
    mine = workflow(E4TPersonalize={"seed": 103})
    assert tuning_steps(succeeded(client.run(mine))) > 0
    succeeded(client.run(UNRELATED))
    assert tuning_steps(succeeded(client.run(mine))) == 0


def test_the_same_seed_gives_the_same_picture_and_another_seed_tunes_anew(
    client: Client, workflow: MakeWorkflow
) -> None:
    mine = workflow(E4TPersonalize={"seed": 104})
    first = client.view(succeeded(client.run(mine)).outputs["10"]["images"][0])
    other = succeeded(client.run(workflow(E4TPersonalize={"seed": 105})))
    assert tuning_steps(other) > 0
    again = client.view(succeeded(client.run({**mine, "10": _preview(mine["10"])})).outputs["10"]["images"][0])
    assert _pixels(first) == _pixels(again)


def test_an_interrupt_ends_a_tuning_soon_and_the_next_run_is_sound(client: Client, workflow: MakeWorkflow) -> None:
    long = workflow(E4TPersonalize={"seed": 106, "settings": ["11", 0]})
    # Every other value is the preset's, although nothing of it is sent.
    long["11"] = {"class_type": "E4TSettings", "inputs": {"steps": 1000}}
    cancelled: list[float] = []

    def cancel_at_the_first_step(node: str, value: float, maximum: float) -> None:
        if node == PERSONALIZE and not cancelled:
            cancelled.append(time.monotonic())
            # From a thread of its own: this one has to go on reading messages.
            threading.Thread(target=client.interrupt).start()

    run = client.run(long, cancel_at_the_first_step)
    assert run.status == "interrupted"
    # A micro-batch takes well under a second on an idle machine; the bound is for one that is busy.
    assert time.monotonic() - cancelled[0] < 30
    assert len(run.progress[PERSONALIZE]) < 1000
    assert tuning_steps(succeeded(client.run(workflow(E4TPersonalize={"seed": 106})))) > 0


def test_an_interrupt_while_sampling_leaves_word_and_base_as_they_were(client: Client, workflow: MakeWorkflow) -> None:
    mine = workflow(E4TPersonalize={"seed": 108})
    before = _pixels(client.view(succeeded(client.run(mine)).outputs["10"]["images"][0]))
    sampler = next(number for number, node in mine.items() if node["class_type"] == "KSampler")
    long = copy.deepcopy(mine)
    long[sampler]["inputs"] |= {"steps": 1000}
    cancelled: list[str] = []

    def cancel_at_the_third_step(node: str, value: float, maximum: float) -> None:
        if node == sampler and value >= 3 and not cancelled:
            cancelled.append(node)
            threading.Thread(target=client.interrupt).start()

    run = client.run(long, cancel_at_the_third_step)
    assert run.status == "interrupted"
    assert run.progress[sampler][-1][0] < 1000
    _forget(client)
    again = succeeded(client.run({**mine, "10": _preview(mine["10"])}))
    assert tuning_steps(again) > 0, "the concept was kept, so its word is not learned anew"
    assert sampler in again.progress, "it was not drawn again, so this proves nothing"
    assert _pixels(client.view(again.outputs["10"]["images"][0])) == before


@pytest.mark.parametrize(
    ("changes", "node", "sentence"),
    [
        ({"E4TPersonalize": {"trigger": "S *"}}, PERSONALIZE, "S *"),
        ({"E4TPersonalize": {"trigger": ""}}, PERSONALIZE, "too short"),
        ({"E4TLoadDomain": {"domain_name": "nobody.safetensors"}}, "3", "e4t_domains"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    client: Client, workflow: MakeWorkflow, changes: dict[str, dict[str, object]], node: str, sentence: str
) -> None:
    with pytest.raises(Rejected) as refused:
        client.run(workflow(**changes))
    assert refused.value.status == 400
    details = " ".join(error["details"] for error in refused.value.answer["node_errors"][node]["errors"])
    assert sentence in details


def test_what_only_shows_while_it_runs_is_one_sentence_in_the_execution_error(
    client: Client, workflow: MakeWorkflow
) -> None:
    twice = workflow(E4TPersonalize={"seed": 107})
    twice["12"] = {
        "class_type": "E4TPersonalize",
        "inputs": {**twice[PERSONALIZE]["inputs"], "model": [PERSONALIZE, 0], "clip": [PERSONALIZE, 1]},
    }
    twice["5"]["inputs"]["clip"], twice["8"]["inputs"]["model"] = ["12", 1], ["12", 0]
    run = client.run(twice)
    assert run.status == "error"
    assert run.error["node_type"] == "E4TPersonalize"
    assert "S*" in run.error["exception_message"]


def _forget(client: Client) -> None:
    """ComfyUI forgets what its nodes gave, and the pack what it learned."""
    client.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1)  # its worker looks at the flags when it wakes, or before the next workflow but one
    succeeded(client.run(UNRELATED))


def _preview(save: dict[str, object]) -> dict[str, object]:
    """The same output as a preview: a cached SaveImage would have nothing to show."""
    return {"class_type": "PreviewImage", "inputs": {"images": save["inputs"]["images"]}}  # type: ignore[index]


def _pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()


def test_a_word_is_learned_without_a_domain_file_drawn_and_read_by_the_stock_prompt(client: Client) -> None:
    shipped = json.loads((WORKFLOWS / "api" / "textual_inversion.json").read_text(encoding="utf-8"))
    for node in shipped.values():
        few = {"KSampler": {"steps": 2, "seed": 7}, "E4TTextualInversion": {"steps": 3, "batch": 2, "micro_batch": 2}}
        node["inputs"] |= few.get(node["class_type"], {})
    learned = succeeded(client.run(shipped))
    said = " ".join(learned.outputs["12"]["text"])
    # Another test of this server may have saved one of that name: this one then has a number.
    found = re.search(r"In stock prompts: (embedding:e4t/my_word\S*)", said)
    assert found
    assert any("S* learned in" in line for line in learned.outputs["4"]["text"])
    with_word = client.view(next(iter(learned.outputs["10"]["images"])))
    # A workflow of stock nodes alone, which any ComfyUI draws.
    stock = {number: node for number, node in shipped.items() if not node["class_type"].startswith("E4T")}
    for node in stock.values():
        node["inputs"] = {
            name: ["1", value[1]] if isinstance(value, list) and value[0] == "4" else value
            for name, value in node["inputs"].items()
        }
        if "S*" in str(node["inputs"].get("text")):
            node["inputs"]["text"] = node["inputs"]["text"].replace("S*", found[1])
    drawn = succeeded(client.run(stock))
    assert _pixels(client.view(next(iter(drawn.outputs["10"]["images"])))) == _pixels(with_word)
