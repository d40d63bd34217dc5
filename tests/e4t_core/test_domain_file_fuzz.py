"""Damaged domain files end in one kind of error and soon, whatever is in them; nothing is built before it was checked."""

from __future__ import annotations

import copy
import json
import random
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import TinyUNet, tiny_domain

from e4t_core.files.domain_file import DomainFileError, load_domain, read_domain_info, save_domain
from e4t_core.files.file_errors import MESSAGE_LIMIT

LONGEST = 2.0  # seconds that one load computes; all of them take some milliseconds
MUTATIONS = 300

DEEP: Any = []
for _ in range(300):
    DEEP = [DEEP]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 99_999, 2**31, 2**63, 2**64, -(2**63), 10**30, 10**400, 0.5, -0.0, 1e-320, 1e308,
    float("nan"), float("inf"), float("-inf"), "", "x", "a..b", ".", "\ud800", "\0", "\x1b[2J", "é", "\u202e", "x" * 100_000,
    [], [1], [1, 2], [-1, 2], [2**63, 1], list(range(1, 100_000)), [[]], ["x"] * 1000, {}, {"a": 1}, {"": {}}, DEEP,
    "forward.weight", "down_blocks.forward.weight", "network", "direct", "hypernetwork", "patch_tokens", "cls_layers", "sd2",
    '{"embed_dim": 1, "vision_cfg": {"layers": 100000, "width": 9223372036854775808}}', "{" * 5000, "[" * 5000,
]  # fmt: skip
DTYPES = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "BF16", "F16", "F64", "I64", "U8", "BOOL", "C64", "", "f32", 7)


def parts(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def assemble(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in JSON data."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def change_description(draw: random.Random, header: dict[str, Any]) -> None:
    info = json.loads(header["__metadata__"]["e4t.info"])
    for _ in range(draw.randint(1, 3)):
        container, key = draw.choice(list(places(info)))
        action = draw.randrange(4)
        if action == 0 and isinstance(container, dict):
            name = draw.choice([v for v in VALUES if isinstance(v, str)])
            container[name] = container.pop(key)
        elif action == 1:
            del container[key]
        else:
            container[key] = copy.deepcopy(draw.choice(VALUES))
        if not info:
            break
    header["__metadata__"]["e4t.info"] = json.dumps(info)


def change_description_text(draw: random.Random, header: dict[str, Any]) -> None:
    text = header["__metadata__"]["e4t.info"]
    at = draw.randrange(len(text))
    inserted = draw.choice(["", "}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\ud800", '"', "NaN", "-", "1e999"])
    header["__metadata__"]["e4t.info"] = text[:at] + inserted + text[at + draw.randint(0, 5) :]


def change_metadata(draw: random.Random, header: dict[str, Any]) -> None:
    key = draw.choice(list(header["__metadata__"]))
    header["__metadata__"][key] = draw.choice([str(value)[:1000] for value in VALUES if not isinstance(value, int)])


def change_tensor(draw: random.Random, header: dict[str, Any]) -> None:
    name = draw.choice([key for key in header if key != "__metadata__"])
    action = draw.randrange(5)
    if action == 0:
        header[name]["dtype"] = draw.choice(DTYPES)
    elif action == 1:
        header[name]["shape"] = draw.choice([value for value in VALUES if isinstance(value, list)])
    elif action == 2:
        header[
            draw.choice(["encoder.first.99999999.weight", "offsets.forward.weight", "backbone.x", "", "x" * 9000])
        ] = header.pop(name)
    elif action == 3:
        del header[name]
    else:
        header[name]["shape"] = list(reversed(header[name]["shape"]))


CHANGES: list[Callable[[random.Random, dict[str, Any]], None]] = [
    change_description, change_description, change_description_text, change_metadata, change_tensor,
]  # fmt: skip


def mutated(draw: random.Random, header: dict[str, Any], data: bytes) -> bytes:
    header = copy.deepcopy(header)
    if draw.random() < 0.85:
        draw.choice(CHANGES)(draw, header)
        return assemble(header, data)
    whole = bytearray(assemble(header, data))
    for _ in range(draw.randint(1, 8)):
        whole[draw.randrange(len(whole))] = draw.randrange(256)
    return bytes(whole[: draw.randrange(len(whole))] if draw.random() < 0.3 else whole)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("fuzz") / "tiny.safetensors"
    save_domain(path, tiny_domain(TinyUNet()))
    return path


def test_a_damaged_file_ends_in_one_kind_of_error_and_soon(original: Path, tmp_path: Path) -> None:
    header, data = parts(original)
    path, refused = tmp_path / "damaged.safetensors", 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(random.Random(seed), header, data))
        started = time.process_time()
        try:
            assert load_domain(path).fingerprint
        except DomainFileError as error:
            refused += 1
            assert len(str(error)) <= MESSAGE_LIMIT and str(error).isprintable(), (seed, str(error))
            assert "damaged.safetensors" in str(error), (seed, str(error))
        except BaseException as error:
            raise AssertionError(f"Seed {seed} ended in {type(error).__name__}: {str(error)[:500]}") from error
        assert time.process_time() - started < LONGEST, f"Seed {seed} took {time.process_time() - started:.1f} s."
    assert refused > 0.8 * MUTATIONS, "the mutations hardly do anything, so this test is blind"


def described(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(info: dict[str, Any]) -> None:
        for name, value in changes.items():
            place = info["backbone"] if name in info["backbone"] and name not in ("image_size",) else info
            place[name] = value

    return change


def renamed(name: str) -> Callable[[dict[str, Any]], None]:
    def change(info: dict[str, Any]) -> None:
        info["projections"][name] = info["projections"].pop(next(iter(info["projections"])))

    return change


@pytest.mark.parametrize(
    "change",
    [
        described(layers=list(range(1, 100_000))),
        described(layers=list(range(1, 257))),
        described(reading="patch_tokens", layers=[1], tokens=100_000),
        described(reading="patch_tokens", layers=[1], tokens=4097),
        described(width=2**63),
        described(width=-5),
        described(context_width=10**400),
        described(feature_width=1e308),
        described(v_size=2**62),
        described(scale=10**400),
        described(training={"deep": DEEP}),
        described(training={"long": "x" * 900_000}),
        described(templates=["a photo of {}"] * 900_000),
        described(templates="neutral"),
        described(architecture="{" * 9000),
        described(architecture='{"embed_dim": 4, "vision_cfg": {"layers": 100000}}'),
        described(preset={"learning_rate": 10**400}),
        described(preset={"steps": 10**400}),
        described(preset={"betas": [1, 2, 3]}),
        described(preset={"steps": "\ud800"}),
        described(word="\ud800"),
        described(name=["\ud800"] * 900_000),
        renamed("forward.weight"),
        renamed("a..b.weight"),
        renamed("down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.bias"),
        renamed("down_blocks." * 50_000 + "weight"),
        renamed("mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight\n"),
        lambda info: info["projections"].update({name: [-1, 2**63] for name in info["projections"]}),
        lambda info: info["projections"].update({f"{n}.weight": [1, 1] for n in range(10_000)}),
    ],
)  # fmt: skip
def test_a_description_out_of_range_is_refused_before_anything_is_built(
    original: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    header, data = parts(original)
    info = json.loads(header["__metadata__"]["e4t.info"])
    change(info)
    header["__metadata__"]["e4t.info"] = json.dumps(info)
    path = tmp_path / "a.safetensors"
    path.write_bytes(assemble(header, data))
    started = time.process_time()
    with pytest.raises(DomainFileError) as caught:
        load_domain(path)
    assert time.process_time() - started < LONGEST
    assert len(str(caught.value)) <= MESSAGE_LIMIT and str(caught.value).isprintable()


def test_the_unharmed_file_still_loads(original: Path) -> None:
    header, data = parts(original)
    original.write_bytes(assemble(header, data))
    assert load_domain(original).info == read_domain_info(original)
