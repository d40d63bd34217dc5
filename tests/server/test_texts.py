"""Who reads what a node says: the client whose job runs, and whoever asks for the job's record; nobody else."""

from __future__ import annotations

import copy
import json
import threading
import time
from collections.abc import Callable

from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server

PERSONALIZE = "4"
MakeWorkflow = Callable[..., Workflow]
UNRELATED: Workflow = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 1}},
    "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


def sampler_of(workflow: Workflow) -> str:
    return next(number for number, node in workflow.items() if node["class_type"] == "KSampler")


def plain(texts: list[str]) -> list[str]:
    """Without the blanks that keep line breaks in Markdown."""
    return [text.replace("  \n", "\n") for text in texts]


def test_another_client_reads_nothing_of_my_job(server: Server, client: Client, workflow: MakeWorkflow) -> None:
    other, runs = Client(server.client.host, server.client.port), {}
    mine = workflow(E4TPersonalize={"seed": 301})

    def listen_meanwhile(node: str, _value: float, _maximum: float) -> None:
        if node == PERSONALIZE and "thread" not in runs:
            # It is queued behind mine, so this client listens until mine has ended.
            runs["thread"] = threading.Thread(target=lambda: runs.update(other=other.run(UNRELATED)))
            runs["thread"].start()

    run = client.run(mine, listen_meanwhile)
    runs["thread"].join()
    assert run.status == runs["other"].status == "success"
    assert run.texts[PERSONALIZE] and run.texts[sampler_of(mine)] == ["S* in 1 of 2 prompts"]
    assert runs["other"].texts == {}
    panels = [message for message in run.panels if message["message"] == "e4t.learning"]
    assert panels[-1]["state"] == "learned" and {message["node"] for message in panels} == {PERSONALIZE}
    assert panels[0]["picture"].startswith("data:image/jpeg;base64,")
    (word,) = [message["words"] for message in run.panels if message["message"] == "e4t.words"]
    assert word[0]["trigger"] == "S*" and len(word[0]["points"]) == 2
    assert runs["other"].panels == [], "another client was shown my photo"


def test_a_script_without_a_client_finds_every_text_in_the_history_and_nobody_else_reads_it(
    server: Server, client: Client, workflow: MakeWorkflow
) -> None:
    mine = looking(workflow, seed=302)
    # ComfyUI has the result of the node when the second job comes: its text is that one's, too.
    job, again = (client.post("/prompt", {"prompt": mine})["prompt_id"] for _ in range(2))
    listening = client.run(UNRELATED)  # behind them in the queue
    entry = history(client, job)
    assert entry["status"]["status_str"] == "success"
    said = entry["outputs"][PERSONALIZE]["text"]
    assert said[0].startswith("S* learned in ") and len(said) > 1, "no note is below it, so this proves too little"
    assert entry["prompt"][3]["e4t_texts"][sampler_of(mine)] == ["S* in 1 of 2 prompts"]
    assert listening.texts == {}
    assert history(client, again)["outputs"][PERSONALIZE]["text"] == said


def test_while_it_learns_the_node_says_where_it_is(client: Client, workflow: MakeWorkflow) -> None:
    run = client.run(looking(workflow, seed=303))
    first = [text.split("\n")[0] for text in plain(run.texts[PERSONALIZE])]
    assert first[0] == "Learning S* ..."
    assert "Learning S*: looking for the subject ..." in first
    assert any(line.startswith("Learning S*: step 2 of 2") for line in first)
    assert first[-1].startswith("S* learned in ")


def test_a_cancelled_job_says_at_which_step_it_was(client: Client, workflow: MakeWorkflow) -> None:
    long = workflow(E4TPersonalize={"seed": 304, "settings": ["11", 0]})
    long["11"] = {"class_type": "E4TSettings", "inputs": settings(steps=1000)}
    cancelled: list[float] = []

    def cancel_later(node: str, value: float, _maximum: float) -> None:
        # It takes a few to tell how long all of them will take.
        if node == PERSONALIZE and value >= 8 and not cancelled:
            cancelled.append(time.monotonic())
            threading.Thread(target=client.interrupt).start()

    run = client.run(long, cancel_later)
    assert run.status == "interrupted"
    texts = plain(run.texts[PERSONALIZE])
    assert any("of 1000, about " in text and " s left" in text for text in texts)
    assert texts[-1].startswith("S*: cancelled at step ") and "of 1000." in texts[-1].split("\n")[0]


def test_a_new_job_clears_what_a_sampler_said_in_the_last_one(client: Client, workflow: MakeWorkflow) -> None:
    mine = workflow(E4TPersonalize={"seed": 305})
    sampler = sampler_of(mine)
    assert client.run(mine).texts[sampler] == ["S* in 1 of 2 prompts"]
    stock = copy.deepcopy(mine)
    loader = next(number for number, node in mine.items() if node["class_type"] == "CheckpointLoaderSimple")
    for node in stock.values():
        for name, value in node["inputs"].items():
            if value in ([PERSONALIZE, 0], [PERSONALIZE, 1]):
                node["inputs"][name] = [loader, value[1]]
    del stock[PERSONALIZE]
    assert [text.strip() for text in client.run(stock).texts[sampler]] == [""]


def looking(workflow: MakeWorkflow, seed: int) -> Workflow:
    """The shipped workflow, in which the node looks for the subject and says so in a note."""
    made = workflow(E4TPersonalize={"seed": seed, "settings": ["11", 0]})
    made["11"] = {"class_type": "E4TSettings", "inputs": {"find_subject": "on"}}
    return made


def history(client: Client, job: str) -> dict:
    deadline = time.monotonic() + 300
    while not (entry := client.history(job)):
        assert time.monotonic() < deadline, "the job never ended"
        time.sleep(0.2)
    return json.loads(json.dumps(entry))


def settings(**changes: object) -> dict[str, object]:
    return {"steps": 2, "batch": 2, "micro_batch": 1, **changes}
