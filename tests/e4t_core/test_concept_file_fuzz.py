"""Damaged concept files end in one kind of error and soon, whatever is in them; what still loads can be saved again."""

from __future__ import annotations

import copy
import json
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kept import by_layers, e4t, edited, equal, inverted, mixed, places, tensors_of
from tiny import tiny_photos

from e4t_core.files.concept_file import ConceptFileError, load_concept
from e4t_core.files.concept_saving import Places, save_concept
from e4t_core.files.file_errors import MESSAGE_LIMIT

LONGEST = 1.0  # seconds that one load computes; nearly all of them take some milliseconds
MUTATIONS = 2000
# Megabytes by which the process may grow: no file here has more than one.
GROWTH = 200

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 4097, 16_384, 99_999, 10**9, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0,
    1e-320, 1e308, float("nan"), float("inf"), float("-inf"), "", "x", "S*", "..", "../x.safetensors", "x.safetensors",
    "\u4e2d" * 200 + ".safetensors", "\ud800", "\0", "\x1b[2J", "\u00e9", "\u202e", "x" * 100_000, "18446744073709551616", "-1", "0" * 20, "\u0663",
    [], [1], [1, 2], [-1, 2], [2**63, 1], list(range(1, 100_000)), [[]], ["x"] * 1000, {}, {"a": 1}, {"": {}}, DEEP,
    "exact", "recipe", "word", "e4t", "textual_inversion", "patch_tokens", "cls_layers", "lean", "v", "{" * 5000, "[" * 5000,
]  # fmt: skip
DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "BF16", "F16", "F32", "F64", "I64", "U8", "BOOL", "C64", "", "f32", 7)
NAMES = (
    *(
        "clip_l",
        "clip_h",
        "start",
        "scales",
        "recipe.latents",
        "recipe.masks",
        "recipe.x",
        "weights.x",
        "weights.X.weight",
    ),
    *("layer.x", "layer.mid_block.attentions.0.transformer_blocks.0.attn2", "edit.gate", "edit.key", "edit.x"),
    *("weights.", "weights.a..b", "shared.x.p", "shared.x.q", "shared.x", "predictor.0.encoder.first.99999999.weight"),
    *("predictor.16.clip_features", "predictor.-1.domain_word", "", "x" * 9000),
)
NUMBERS = (float("nan"), float("inf"), float("-inf"), 0.0, -1.0, 3.0, 1e38, 1e-45, 2.0**-11, 2.0**113)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def inner(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in JSON data."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from inner(value[key])


def change_description(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    try:
        info = json.loads(header["__metadata__"]["e4t.info"])
    except (KeyError, ValueError, RecursionError):  # a second file, or it was damaged already
        change_metadata(draw, header, data)
        return
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(inner(info)))
        action = draw.randrange(5)
        if action == 0 and isinstance(container, dict):
            name = draw.choice([v for v in VALUES if isinstance(v, str)])
            container[name] = container.pop(key)
        elif action == 1:
            del container[key]
        elif action == 2 and isinstance(container, dict):
            container[draw.choice(["vectors", "x", "steps", "share", "plan", ""])] = copy.deepcopy(draw.choice(VALUES))
        else:
            container[key] = copy.deepcopy(draw.choice(VALUES))
        if not info:
            break
    header["__metadata__"]["e4t.info"] = json.dumps(info)


def change_description_text(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    key = draw.choice([key for key in header["__metadata__"] if key in ("e4t.info", "e4t.fingerprint")])
    text = header["__metadata__"][key]
    at = draw.randrange(len(text))
    inserted = draw.choice(["", "}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800", '"', "NaN", "-", "1e999"])
    header["__metadata__"][key] = text[:at] + inserted + text[at + draw.randint(0, 5) :]


def change_metadata(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    action = draw.randrange(5)
    key = draw.choice(list(header["__metadata__"]))
    if action == 0:
        header["__metadata__"]["e4t.version"] = draw.choice(["0", "2", "1.0", "", "9" * 5000, "\x1b[2J"])
    elif action == 1:
        del header["__metadata__"][key]
    elif action == 2:
        header["__metadata__"][draw.choice(["x", "", "\0", "x" * 10_000])] = "x" * draw.choice([1, 10**6, 10**7])
    elif action == 3:
        header["__metadata__"] = draw.choice([None, [], 3, {}, {"a": 1}, {"a": {"b": "c"}}])
    else:
        header["__metadata__"][key] = draw.choice([str(v)[:1000] for v in VALUES if not isinstance(v, int)])


def change_tensor(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    name = draw.choice([key for key in header if key != "__metadata__"])
    action = draw.randrange(6)
    if action == 0:
        header[name]["dtype"] = draw.choice(DTYPES)
    elif action == 1:
        header[name]["shape"] = draw.choice([value for value in VALUES if isinstance(value, list)])
    elif action == 2:
        header[draw.choice(NAMES)] = header.pop(name)
    elif action == 3:
        del header[name]
    elif action == 4:
        header[draw.choice(NAMES)] = {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]}
    else:
        header[name]["shape"] = list(reversed(header[name]["shape"]))


def drop_tensor(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    """With its numbers, so that the file is sound but for what it lacks."""
    name = draw.choice([key for key in header if key != "__metadata__"])
    start, end = header.pop(name)["data_offsets"]
    del data[start:end]
    for key, part in header.items():
        if key != "__metadata__" and part["data_offsets"][0] >= end:
            part["data_offsets"] = [offset - (end - start) for offset in part["data_offsets"]]


def change_type(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    """To one of the same size with another last axis, so that the file is sound."""
    name = draw.choice([key for key in header if key != "__metadata__"])
    part = header[name]
    size = {"F64": 8, "F32": 4, "F16": 2}[part["dtype"]]
    dtype, other = draw.choice(
        [("F8_E4M3", 1), ("F8_E5M2", 1), ("BF16", 2), ("F16", 2), ("F32", 4), ("F64", 8), ("I32", 4)]
    )
    if part["shape"] and part["shape"][-1] * size % other == 0:
        part["dtype"], part["shape"][-1] = dtype, part["shape"][-1] * size // other


def change_numbers(draw: random.Random, header: dict[str, Any], data: bytearray) -> None:
    name = draw.choice([key for key in header if key != "__metadata__"])
    if "scales" in header and draw.random() < 0.4:
        name = "scales"
    part = header[name]
    kind, size = ("<e", 2) if part["dtype"] == "F16" else ("<f", 4)
    start, end = part["data_offsets"]
    if end > start:
        at = start + size * draw.randrange((end - start) // size)
        number = draw.choice(NUMBERS)
        try:
            data[at : at + size] = struct.pack(kind, number)
        except OverflowError:
            data[at : at + size] = struct.pack(kind, float("inf"))


CHANGES: list[Callable[[random.Random, dict[str, Any], bytearray], None]] = [
    *(change_description, change_description, change_description, change_description_text, change_metadata),
    *(change_tensor, drop_tensor, change_type, change_numbers, change_numbers),
]


def mutated(draw: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    header, numbers = copy.deepcopy(header), bytearray(data)
    if draw.random() < 0.85:
        for _ in range(draw.choice([1, 1, 1, 2])):
            if isinstance(header.get("__metadata__"), dict) and any(
                key.startswith("e4t.") for key in header["__metadata__"]
            ):
                draw.choice(CHANGES)(draw, header, numbers)
        return assemble(header, bytes(numbers))
    whole = bytearray(assemble(header, data))
    action = draw.randrange(4)
    if action == 0:
        whole[:8] = struct.pack(
            "<Q", draw.choice([0, 1, 7, len(whole) - 8, len(whole), 2**24, 2**32, 2**63, 2**64 - 1])
        )
    elif action == 1:
        del whole[draw.randrange(len(whole)) :]
    else:
        # Half of them in the header, where they break more.
        for _ in range(draw.randint(1, 8)):
            most = len(whole) if action == 2 else len(whole) - len(data)
            whole[draw.randrange(most)] ^= 1 << draw.randrange(8)
    return bytes(whole)


@dataclass(frozen=True)
class Original:
    files: tuple[Path, ...]
    folders: Places


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Original]:
    folders = places(tmp_path_factory.mktemp("fuzz"))
    kept = [(e4t(), "exact"), (mixed(), "exact"), (e4t(tiny_photos(2, masks=True)), "recipe"), (inverted(2), "word")]
    kept += [(by_layers(2), "word"), (edited(), "word")]
    found = []
    for number, (concept, body) in enumerate(kept):
        saved = save_concept(folders, f"c{number}", concept, body)
        found.append(Original((saved.path, *([saved.weights] if saved.weights else [])), folders))
    return found


def grown() -> float:
    """The most memory that this process ever took, in megabytes."""
    resource = pytest.importorskip("resource")
    most: int = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**20 if sys.platform == "darwin" else 2**10)


def load(path: Path, weights: Path, why: object) -> str:
    """Load a damaged file as it should be loaded; "" if it still holds a concept, else the error's first words."""
    before = {file: file.stat().st_mtime_ns for folder in (path.parent, weights) for file in folder.iterdir()}
    started = time.process_time()
    try:
        concept, _ = load_concept(path, [weights])
    except ConceptFileError as error:
        message = str(error)
        assert len(message) <= MESSAGE_LIMIT and message.isprintable(), (why, message)
        assert ".safetensors" in message, (why, message)
        outcome = " ".join(message.partition(".safetensors ")[2].split()[:3])
    except BaseException as error:
        raise AssertionError(f"{why} ended in {type(error).__name__}: {str(error)[:500]}") from error
    else:
        outcome = ""
    assert time.process_time() - started < LONGEST, f"{why} took {time.process_time() - started:.1f} s."
    assert before == {file: file.stat().st_mtime_ns for folder in (path.parent, weights) for file in folder.iterdir()}
    if not outcome:
        again = places(path.parent / "again")
        body = "recipe" if concept.to_learn else "exact"
        saved = save_concept(again, "again", concept, body, overwrite=True)
        assert equal(tensors_of(load_concept(saved.path, [again.weights])[0]), tensors_of(concept)), why
    return outcome


def test_a_damaged_file_ends_in_one_kind_of_error_and_soon(originals: list[Original], tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    outcomes: Counter[str] = Counter()
    whole = {file: parts(file) for original in originals for file in original.files}
    path, before = tmp_path / "damaged.safetensors", grown()
    for seed in range(MUTATIONS):
        draw = random.Random(seed)
        original = draw.choice(originals)
        damaged = draw.choice(original.files)
        main, *second = original.files
        path.write_bytes(mutated(draw, *whole[main]) if damaged == main else main.read_bytes())
        for file in second:
            content = mutated(draw, *whole[file]) if damaged == file else file.read_bytes()
            (tmp_path / "weights" / file.name).write_bytes(content)
        outcomes[load(path, tmp_path / "weights", f"Seed {seed}")] += 1
    print(f"{MUTATIONS} files, {outcomes.pop('', 0)} still load;", dict(outcomes.most_common()))
    refused = sum(outcomes.values())
    assert refused > 0.6 * MUTATIONS, "the mutations hardly do anything, so this test is blind"
    assert grown() - before < GROWTH


def described(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info.update(changes)


def predicted(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda info: info["predictors"][0].update(changes)


@pytest.mark.parametrize(
    "change",
    [
        predicted(vectors=10**9),
        predicted(vectors=4097, reading="patch_tokens"),
        predicted(width=10**9),
        predicted(width=16_384),
        predicted(feature_width=10**9),
        predicted(feature_width=1_000_000),
        predicted(context_width=16_384),
        predicted(context_width=1024),
        predicted(scale=10**400),
        predicted(share=0.5),
        predicted(reading="other"),
        lambda info: info["predictors"].extend(info["predictors"] * 20),
        lambda info: info["predictors"].append({**info["predictors"][0], "share": 1e-9}),
        lambda info: info["predictors"].append({**info["predictors"][0], "share": 1e-9, "feature_width": 33}),
        lambda info: info["predictors"].append({**info["predictors"][0], "vectors": 4097}),
        lambda info: info["predictors"].clear(),
        described(predictors=DEEP),
        described(predictors={"0": {}}),
        described(settings=DEEP),
        described(settings={"steps": DEEP}),
        described(settings={f"s{n}": 1 for n in range(10_000)}),
        described(settings={"steps": 10**400}),
        described(sampling={"refine": "yes"}),
        described(sampling={"end_percent": float("nan")}),
        described(seed="9" * 20),
        described(seed=5),
        described(seed="\u0663"),
        described(losses=[float("nan")]),
        described(losses=[0.0] * 1001),
        described(notes=["x" * 2001]),
        described(notes=["x"] * 101),
        described(trigger="\ud800\ud800"),
        described(trigger="x"),
        described(title=["x" * 900_000]),
        described(title="\x1b[2J"),
        described(method="other"),
        described(method="textual_inversion"),
        described(body="recipe"),
        described(body="word"),
        described(body="compact"),
        described(weights_file=""),
        described(fingerprint="other"),
        described(fingerprint=""),
        described(micro_batch=2**31),
        described(extra=1),
        lambda info: info.pop("trigger"),
        lambda info: info.clear(),
    ],
)  # fmt: skip
def test_a_description_out_of_range_is_refused_before_anything_is_built(
    originals: list[Original], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    header, data = parts(originals[0].files[0])
    info = json.loads(header["__metadata__"]["e4t.info"])
    change(info)
    header["__metadata__"]["e4t.info"] = json.dumps(info)
    path, before = tmp_path / "damaged.safetensors", grown()
    path.write_bytes(assemble(header, data))
    assert load(path, originals[0].folders.weights, "It")
    assert grown() - before < GROWTH


def test_as_many_layers_as_a_file_can_have_are_built_soon(originals: list[Original], tmp_path: Path) -> None:
    header, data = parts(originals[0].files[0])
    info = json.loads(header["__metadata__"]["e4t.info"])
    one = {**info["predictors"][0], "reading": "patch_tokens", "vectors": 4097}
    info["predictors"] = [one]
    header["__metadata__"]["e4t.info"] = json.dumps(info)
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(assemble(header, data))
    second, _ = parts(originals[0].files[1])
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    names = {f"predictor.0.encoder.{number}": empty for number in range(19_990)}
    (tmp_path / "weights").mkdir()
    many = assemble({"__metadata__": second["__metadata__"], **names}, b"")
    (tmp_path / "weights" / originals[0].files[1].name).write_bytes(many)
    assert load(path, tmp_path / "weights", "It").startswith("lacks")


def test_the_unharmed_files_still_load(originals: list[Original], tmp_path: Path) -> None:
    for original in originals:
        main, *second = original.files
        copied = tmp_path / main.name
        copied.write_bytes(assemble(*parts(main)))
        (tmp_path / "weights").mkdir(exist_ok=True)
        for file in second:
            (tmp_path / "weights" / file.name).write_bytes(assemble(*parts(file)))
        assert load(copied, tmp_path / "weights", main.name) == ""
