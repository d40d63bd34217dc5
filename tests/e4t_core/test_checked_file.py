"""Files are written whole or not at all, and a safetensors file is read only as far as it is what it should be."""

import json
import os
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from system_faults import as_a_plain_user, largest_file, umask

from e4t_core.files.checked_file import (
    DTYPES,
    HEADER_LIMIT,
    TENSOR_LIMIT,
    check_dtypes,
    check_finite,
    check_keys,
    check_shapes,
    read_header,
    read_tensors,
    write_tensors,
)
from e4t_core.files.file_errors import MESSAGE_LIMIT, FileError, FileKind, shortened, shown
from e4t_core.files.whole_file import check_is_file, check_is_folder, replacing, temporary_files


class TinyError(FileError):
    pass


TINY = FileKind("Tiny file", "make it again", TinyError, "put it there")
POSIX = pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2).half()}, tmp_path / "a.safetensors", {"k": "v"})
    return tmp_path / "a.safetensors"


def raw(path: Path, header: object, data: bytes = b"") -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(dtype: str = "F32", shape: object = (0,), end: int = 0) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}


@POSIX
@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    with umask(mask):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {}, TINY)
    assert (tmp_path / "a.safetensors").stat().st_mode & 0o777 == mode


@POSIX
def test_a_replaced_file_keeps_its_mode_and_a_link_stays_a_link(path: Path, tmp_path: Path) -> None:
    path.chmod(0o604)
    (tmp_path / "folder").mkdir()
    link = tmp_path / "folder" / "link.safetensors"
    link.symlink_to(path)
    write_tensors(link, {"c": torch.ones(2)}, {}, TINY)
    assert link.is_symlink() and path.stat().st_mode & 0o777 == 0o604
    assert load_file(path).keys() == {"c"} and list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_while_writing_leaves_the_old_file_and_nothing_else(
    path: Path, error: type[BaseException]
) -> None:
    before = path.read_bytes()
    with pytest.raises(error), replacing(path) as part:
        part.write_bytes(b"half of it")
        raise error
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@POSIX
def test_a_full_disk_leaves_the_old_file_and_is_told(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TinyError, match="could not be written .*the disk has room"), largest_file(4096):
        write_tensors(path, {"a": torch.ones(100_000)}, {}, TINY)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


@POSIX
def test_a_file_that_the_system_does_not_open_a_second_time_is_told(path: Path) -> None:
    resource = pytest.importorskip("resource")
    header, before = read_header(path, TINY), resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(path, os.O_RDONLY)
    os.close(free)
    # One more file may be open, but torch opens what the library has open already.
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 1, before[1]))
    try:
        with pytest.raises(TinyError, match="could not be read .*Too many open files"):
            read_tensors(path, header.tensors, TINY)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / f"{'n' * 243}.safetensors"
    write_tensors(path, {"a": torch.ones(2)}, {}, TINY)
    assert load_file(path)["a"].sum() == 2


@pytest.mark.parametrize("target", ["nowhere/a.safetensors", "", f"{'n' * 400}.safetensors", "a\0.safetensors"])
def test_where_nothing_can_be_written_is_one_sentence(tmp_path: Path, target: str) -> None:
    with pytest.raises(TinyError, match="could not be written"):
        write_tensors(tmp_path / target, {"a": torch.ones(2)}, {}, TINY)
    assert not list(tmp_path.iterdir())


def test_text_that_no_file_can_hold_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TinyError, match="could not be written"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {"k": "\ud800"}, TINY)
    assert not list(tmp_path.iterdir())


def test_tensors_that_share_memory_are_written_each(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    write_tensors(tmp_path / "a.safetensors", {"a": tied, "b": tied, "c": tied[1:]}, {}, TINY)
    found = load_file(tmp_path / "a.safetensors")
    assert torch.equal(found["a"], found["b"]) and found["c"].tolist() == [1, 2, 3]


def test_a_header_tells_names_types_shapes_and_texts(path: Path) -> None:
    header = read_header(path, TINY)
    assert header.metadata == {"k": "v"} and header.bytes == path.stat().st_size
    assert header.shapes == {"a": (2, 3), "b": (2,)}
    assert header.tensors["b"].dtype == torch.float16


def test_what_was_read_no_longer_depends_on_the_file(path: Path) -> None:
    header = read_header(path, TINY)
    tensors = read_tensors(path, header.tensors, TINY)
    data = path.read_bytes()
    with path.open("rb+") as file:  # in place, as copying over it does
        file.seek(len(data) - 28)
        file.write(bytes(28))
        file.truncate(len(data) - 20)
    assert tensors["a"].flatten().tolist() == [0, 1, 2, 3, 4, 5] and tensors["b"].tolist() == [1, 1]


def test_a_file_that_changes_between_header_and_numbers_is_told(path: Path) -> None:
    header = read_header(path, TINY)
    save_file({"a": torch.ones(3), "b": torch.ones(2)}, path)
    with pytest.raises(TinyError, match="changed while it was read"):
        read_tensors(path, header.tensors, TINY)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 100_000,
        b'{"a":{"dtype":"F32","shape":' + b"[" * 10_000,
        b"\xff\xfe{}",
        b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}',
        {"a": entry(shape=[-1])},
        {"a": entry(shape=[10**400])},
        {"a": entry(shape=[0, 2**63])},
        {"a": entry(shape=[1] * 100, end=4)},
        {"a": entry(shape=[4], end=16)},
        {"a": entry("C64", [1], 8)},
        {"a": entry("F77", [1], 8)},
        {"a" * 1000: entry()},
        {str(number): entry() for number in range(TENSOR_LIMIT + 1)},
        {"__metadata__": {"k": "v" * HEADER_LIMIT}},
        {"__metadata__": {"k": 3}},
    ],
)
def test_a_header_that_cannot_be_is_one_short_sentence(tmp_path: Path, header: object) -> None:
    raw(tmp_path / "a.safetensors", header, b"\0" * 8 if "C64" in str(header)[:80] else b"")
    with pytest.raises(TinyError) as caught:
        read_header(tmp_path / "a.safetensors", TINY)
    assert "a.safetensors" in str(caught.value) and len(str(caught.value)) <= MESSAGE_LIMIT


@pytest.mark.parametrize("size", [0, 5, 60, 150])
def test_a_cut_file_is_said_to_be_truncated(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(TinyError, match="is truncated"):
        read_header(path, TINY)


def test_what_is_no_file_is_told_without_waiting_for_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    places = {
        "folder": "is a folder",
        "nobody": "was not found",
        "n" * 400: "could not be looked for",
        "a\0b": "looked",
    }
    if os.name != "nt":
        os.mkfifo(tmp_path / "pipe")
        places["pipe"] = "is no ordinary file"
    for name, told in places.items():
        for read in (check_is_file, read_header):
            with pytest.raises(TinyError, match=told):
                read(tmp_path / name, TINY)


@POSIX
def test_what_may_not_be_read_is_told() -> None:
    # Not below pytest's own folder, which other users may not enter either.
    with tempfile.TemporaryDirectory() as outside:
        path = Path(outside) / "a.safetensors"
        save_file({"a": torch.ones(2)}, path)
        path.chmod(0o200)
        Path(outside).chmod(0o755)
        with as_a_plain_user(), pytest.raises(TinyError, match="its permissions"):
            read_header(path, TINY)
        Path(outside).chmod(0o600)
        with as_a_plain_user(), pytest.raises(TinyError, match="permissions of its folder"):
            read_header(path, TINY)
        with as_a_plain_user(), pytest.raises(TinyError, match="may not be entered"):
            check_is_folder(outside, TINY)
        Path(outside).chmod(0o700)


@pytest.mark.parametrize(
    "check, told",
    [
        (lambda p, t: check_keys(p, TINY, t, {"a", "b", "c"}), "lacks 1 of 3 tensors, the first is c"),
        (lambda p, t: check_keys(p, TINY, t, {"a"}), "1 unknown tensors besides its 1, the first is b"),
        (
            lambda p, t: check_shapes(p, TINY, t, {"b": (2,), "a": (3, 2)}),
            r"shape \(2, 3\) in place of \(3, 2\) for a",
        ),
        (lambda p, t: check_dtypes(p, TINY, t, {torch.float32}), "b as torch.float16"),
        (lambda p, t: check_finite(p, TINY, {"a": torch.tensor([1, float("nan")])}), "NaN or infinity in a"),
        (
            lambda p, t: check_finite(p, TINY, {"a": torch.tensor([1, float("nan")]).to(torch.float8_e5m2)}),
            "NaN or infinity in a",
        ),
    ],
)
def test_the_first_fault_is_named(path: Path, check: Callable[..., None], told: str) -> None:
    with pytest.raises(TinyError, match=told) as caught:
        check(path, read_header(path, TINY).tensors)
    assert str(caught.value).endswith(": make it again.")


def test_what_is_as_expected_passes(path: Path) -> None:
    header = read_header(path, TINY)
    check_keys(path, TINY, header.tensors, {"a", "b"})
    check_shapes(path, TINY, header.tensors, {"a": (2, 3)})
    check_dtypes(path, TINY, header.tensors)
    check_finite(path, TINY, {"a": torch.ones(2), "n": torch.ones(2, dtype=torch.int64)})


def test_messages_stay_short_and_printable_whatever_a_file_says() -> None:
    for path in ("a.safetensors", "/" + "folder/" * 600 + "a.safetensors", "/x/\udcff\n/a.safetensors"):
        for text in ("is odd", "is " + "odd" * 300_000, "is \ud800\x1b[2J" * 50):
            message = str(TINY.fault(path, text))
            assert len(message) <= MESSAGE_LIMIT and message.isprintable()
            assert (
                message.startswith("Tiny file ") and "a.safetensors" in message and message.endswith("make it again.")
            )
    assert (
        shortened("a\nb") == "a\\nb" and shortened("abcdef", 5) == "ab..." and shortened("abcdef", 5, True) == "...ef"
    )
    for value in (list(range(900_000)), "x" * 900_000, 10**5000, {"a": ["\ud800"]}):
        assert len(shown(value)) <= 80 and shown(value).isprintable()


def test_every_type_is_written_so_that_the_library_reads_it(tmp_path: Path) -> None:
    numbers = torch.arange(24).view(2, 3, 4)
    tensors = {f"a.{dtype}": numbers.to(dtype) for dtype in DTYPES.values()}
    tensors |= {
        "one": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "turned": torch.arange(6.0).view(2, 3).T,
        "part": torch.arange(6.0)[2:4],
        "learned": torch.nn.Parameter(torch.ones(3)),
        "\u4e2d \"'\n": torch.ones(1),
    }
    texts = {"k": 'a "quoted"\n\u4e2d\U0001f600 text', "": ""}
    path = tmp_path / "a.safetensors"
    write_tensors(path, tensors, texts, TINY)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].reshape(-1).view(torch.uint8).equal(tensor.detach().reshape(-1).view(torch.uint8)), name
    assert read_header(path, TINY).metadata == texts


@POSIX
def test_nothing_but_the_named_temporary_file_is_there_while_a_file_is_written(tmp_path: Path) -> None:
    path, seen = tmp_path / "a.safetensors", set()

    class Watching(torch.Tensor):
        def detach(self) -> torch.Tensor:
            seen.update(file.name for file in tmp_path.iterdir())
            return torch.ones(2)

    write_tensors(path, {"a": torch.ones(2).as_subclass(Watching)}, {}, TINY)
    assert len(seen) == 1 and seen.pop().startswith(".a.safetensors.") and load_file(path)["a"].sum() == 2


def test_leftovers_of_a_path_are_told_from_all_else(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with replacing(path), replacing(tmp_path / "ab.safetensors"), replacing(tmp_path / "a.b.safetensors"):
        for name in (".a.safetensors.tmp", ".a.safetensors.x-12345678.tmp", "a.safetensors.1-12345678.tmp"):
            (tmp_path / name).touch()
        found = temporary_files(path)
        assert len(found) == 1 and found[0].name.startswith(f".a.safetensors.{os.getpid()}-")
    assert not temporary_files(path)
