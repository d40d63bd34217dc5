"""ComfyUI's "Free model and node cache" leaves nothing of ours in memory, and what is needed again is learned again."""

from __future__ import annotations

import time
from collections.abc import Callable

from devtools.comfyui_client import Client, Workflow
from devtools.comfyui_server import Server

PERSONALIZE = "4"
MakeWorkflow = Callable[..., Workflow]
CONCEPTS = 2
ROOM = 100 * 2**20
"""Bytes that a process may keep after anything it did: one concept alone is more than that here."""


def free(client: Client) -> None:
    # ComfyUI's worker wakes up for it; it sleeps through one that comes while it tidies up after a job.
    for _ in range(3):
        client.post("/free", {"unload_models": True, "free_memory": True})
        time.sleep(1)


def learned(client: Client, workflow: Workflow) -> None:
    run = client.run(workflow)
    assert run.status == "success", run.error
    assert run.texts[PERSONALIZE][-1].startswith("S* learned in "), run.texts


def test_free_releases_concepts_prompts_and_encoders(server: Server, client: Client, workflow: MakeWorkflow) -> None:
    # Libraries, caches of the allocator and the like come with the first one and stay.
    learned(client, workflow(E4TPersonalize={"seed": 400}))
    free(client)
    without = server.memory()
    for seed in range(CONCEPTS):
        learned(client, workflow(E4TPersonalize={"seed": 401 + seed}))
    held = server.memory()
    free(client)
    after = server.memory()
    deadline = time.monotonic() + 60
    while after - without >= ROOM and time.monotonic() < deadline:  # a busy machine takes its time
        free(client)
        after = server.memory()
    told = f"{without / 2**20:.0f} MB before, {held / 2**20:.0f} MB with concepts, {after / 2**20:.0f} MB freed"
    assert held - without > CONCEPTS * ROOM, f"too little was held to prove anything: {told}"
    assert after - without < ROOM, told


def test_what_was_freed_is_learned_again_to_the_same_picture(client: Client, workflow: MakeWorkflow) -> None:
    mine = workflow(E4TPersonalize={"seed": 411})
    pictures = []
    for number in range(2):
        if number:
            free(client)
        run = client.run(mine)
        assert run.status == "success", run.error
        assert run.texts[PERSONALIZE][-1].startswith("S* learned in "), run.texts
        pictures.append(pixels(client.view(run.outputs["10"]["images"][0])))
    assert pictures[0] == pictures[1]


def test_unloading_models_alone_forgets_no_concept(client: Client, workflow: MakeWorkflow) -> None:
    mine = workflow(E4TPersonalize={"seed": 412})
    client.run(mine)
    client.post("/free", {"unload_models": True, "free_memory": False})
    time.sleep(2)
    changed = workflow(E4TPersonalize={"seed": 412, "trigger": "T*"})
    assert client.run(changed).texts[PERSONALIZE][-1].startswith("T* was learned before")


def pixels(png: bytes) -> bytes:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png)).convert("RGB").tobytes()
