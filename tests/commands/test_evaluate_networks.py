"""The networks that judge: dlib's on a drawn face, files of OpenVINO's and ONNX's formats, one's own, CLIP from a file."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from commands.evaluate.faults import EvaluationError
from commands.evaluate.networks.choose import identity_networks
from commands.evaluate.networks.clip import Clip
from commands.evaluate.networks.dlib_network import DlibNetwork
from commands.evaluate.networks.faces import Faces, aligned, five_points
from commands.evaluate.networks.file_network import FileNetwork
from commands.evaluate.networks.network import Embedded, cosine

GRAY = (90, 110, 130)


def drawn_face(skin: tuple[int, int, int] = (205, 165, 140), turn: float = 0, mouth: int = 10) -> Image.Image:
    """320x320 pixels with a face that dlib's detector takes for one: eyes at (125, 147) and (195, 147)."""
    picture = Image.new("RGB", (320, 320), GRAY)
    draw = ImageDraw.Draw(picture)
    darker, darkest = (tuple(int(c * part) for c in skin) for part in (0.88, 0.74))
    draw.ellipse((75, 20, 245, 300), fill=(60, 40, 30))
    draw.ellipse((90, 60, 230, 290), fill=skin)
    for x in (125, 195):
        draw.ellipse((x - 24, 128, x + 24, 160), fill=darkest)
        draw.ellipse((x - 17, 138, x + 17, 156), fill=(240, 240, 240))
        draw.ellipse((x - 8, 138, x + 8, 156), fill=(40, 30, 20))
        draw.rectangle((x - 24, 116, x + 24, 124), fill=(50, 35, 25))
    draw.polygon([(160, 140), (145, 205), (175, 205)], fill=darker)
    draw.ellipse((143, 195, 177, 212), fill=darkest)
    draw.ellipse((130, 232 - mouth // 2, 190, 248 + mouth // 2), fill=(150, 70, 70))
    draw.line((130, 240, 190, 240), fill=(90, 40, 40), width=3)
    return picture.filter(ImageFilter.GaussianBlur(2)).rotate(turn, fillcolor=GRAY)


NOBODY = Image.new("RGB", (200, 120), GRAY)


@pytest.fixture(scope="module")
def faces() -> Faces:
    # Not every system has a wheel of it.
    pytest.importorskip("dlib")
    return Faces()


def test_dlib_finds_a_face_and_none_where_there_is_none(faces: Faces) -> None:
    network = DlibNetwork(faces)
    said = network.embed([drawn_face(), NOBODY, drawn_face(mouth=20)])
    assert said.found.tolist() == [True, False, True]
    assert said.vectors.shape == (3, 128)
    same = network.similarity(said.vectors[:1], said.vectors)[0]
    assert same[0] == pytest.approx(1)
    distance = np.linalg.norm(said.vectors[0] - said.vectors[2])
    assert same[2] == pytest.approx(1 - distance, abs=1e-6)


def test_the_largest_face_is_looked_at(faces: Faces) -> None:
    two = Image.new("RGB", (640, 320), GRAY)
    two.paste(drawn_face().resize((200, 200)), (20, 60))
    two.paste(drawn_face(), (300, 0))
    found = faces.find(two)
    assert found is not None
    eyes = five_points(found.points)[:2]
    assert np.abs(eyes - [(425, 147), (495, 147)]).max() < 15


def test_alignment_brings_points_of_a_turned_and_scaled_picture_to_the_template() -> None:
    template = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6))
    angle, scale = np.deg2rad(25), 3.5
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = np.array(template) * 100 @ turn.T + [150, 60]
    picture = Image.new("RGB", (600, 600))
    for x, y in points:
        ImageDraw.Draw(picture).ellipse((x - 9, y - 9, x + 9, y + 9), fill="white")
    pixels = np.asarray(aligned(picture, points, template, 100).convert("L"), float)
    for x, y in np.array(template) * 100:
        part = pixels[int(y) - 6 : int(y) + 7, int(x) - 6 : int(x) + 7]
        rows, columns = np.mgrid[-6:7, -6:7]
        assert part.sum() > 0
        middle = (columns * part).sum() / part.sum(), (rows * part).sum() / part.sum()
        assert np.abs(middle).max() < 0.8


def openvino_file(folder: Path, width: int = 64, channels: int = 3, name: str = "tiny") -> Path:
    """A network in OpenVINO's format: means of 8x8 blocks of 32x32 pixels, then a matrix of random numbers."""
    openvino = pytest.importorskip("openvino")
    ops = pytest.importorskip("openvino.opset13")

    given = ops.parameter([1, channels, 32, 32], np.float32)
    pooled = ops.avg_pool(given, [8, 8], [0, 0], [0, 0], [8, 8], exclude_pad=False)
    flat = ops.reshape(pooled, np.array([1, channels * 16]), special_zero=False)
    matrix = np.random.default_rng(0).normal(size=(channels * 16, width)).astype(np.float32)
    path = folder / f"{name}.xml"
    openvino.save_model(openvino.Model([ops.matmul(flat, ops.constant(matrix), False, False)], [given]), path, False)
    return path


def test_a_file_of_openvinos_format_sees_an_aligned_face_with_blue_first(tmp_path: Path, faces: Faces) -> None:
    network = FileNetwork(openvino_file(tmp_path), "openvino", lambda: faces)
    said = network.embed([NOBODY, drawn_face(), drawn_face(turn=8)])
    assert said.found.tolist() == [False, True, True]
    assert said.vectors.shape == (3, 64)
    # Turned back by its points it is nearly the same again; another skin is not.
    near, far = cosine(said.vectors[1:2], said.vectors[2:])[0, 0], network.embed([drawn_face((90, 160, 240))]).vectors
    assert near > 0.99 > cosine(said.vectors[1:2], far)[0, 0]
    blue = Image.new("RGB", (32, 32), (0, 0, 255))
    matrix = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    assert network.answer(blue) == pytest.approx(255 * matrix[:16].sum(0), rel=1e-4, abs=0.1)


def test_another_manner_takes_red_first_and_pixels_around_zero(tmp_path: Path, faces: Faces) -> None:
    network = FileNetwork(openvino_file(tmp_path), "onnx", lambda: faces)
    red = Image.new("RGB", (32, 32), (255, 0, 0))
    matrix = np.random.default_rng(0).normal(size=(48, 64)).astype(np.float32)
    wanted = matrix[:16].sum(0) - matrix[16:].sum(0)
    assert network.answer(red) == pytest.approx(wanted, rel=1e-3, abs=1e-3)


def number(field: int, value: int) -> bytes:
    """A field of a protocol buffer that holds a number."""
    return bytes([field << 3]) + varint(value)


def part(field: int, held: bytes | str) -> bytes:
    """A field that holds bytes, a text or another buffer."""
    held = held.encode() if isinstance(held, str) else held
    return bytes([field << 3 | 2]) + varint(len(held)) + held


def varint(value: int) -> bytes:
    more = b""
    while value > 127:
        more, value = more + bytes([value & 127 | 128]), value >> 7
    return more + bytes([value])


def onnx_file(path: Path) -> Path:
    """A network in ONNX's format (onnx.proto): the means of any number of pictures' channels, and a matrix."""
    matrix = np.random.default_rng(0).normal(size=(3, 64)).astype("<f4")

    def node(kind: str, given: list[str], made: str) -> bytes:
        return part(1, b"".join(part(1, name) for name in given) + part(2, made) + part(4, kind))

    def value(field: int, name: str, sizes: list[int | None]) -> bytes:
        shape = b"".join(part(1, part(2, "n") if size is None else number(1, size)) for size in sizes)
        return part(field, part(1, name) + part(2, part(1, number(1, 1) + part(2, shape))))

    tensor = number(1, 3) + number(1, 64) + number(2, 1) + part(8, "w") + part(9, matrix.tobytes())
    nodes = node("GlobalAveragePool", ["x"], "p") + node("Flatten", ["p"], "f") + node("MatMul", ["f", "w"], "y")
    ends = value(11, "x", [None, 3, 112, 112]) + value(12, "y", [None, 64])
    graph = nodes + part(2, "g") + part(5, tensor) + ends
    path.write_bytes(number(1, 8) + part(7, graph) + part(8, part(1, "") + number(2, 13)))
    return path


def test_a_file_of_onnxs_format_is_read_whatever_number_of_pictures_it_takes(tmp_path: Path, faces: Faces) -> None:
    network = FileNetwork(onnx_file(tmp_path / "tiny.onnx"), "onnx", lambda: faces)
    matrix = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    assert network.answer(Image.new("RGB", (112, 112), (255, 0, 0))) == pytest.approx(
        matrix[0] - matrix[1:].sum(0), abs=1e-3
    )
    assert network.embed([drawn_face(), NOBODY]).found.tolist() == [True, False]


def test_new_weights_under_the_same_name_are_another_network(tmp_path: Path, faces: Faces) -> None:
    path = openvino_file(tmp_path)
    before = FileNetwork(path, "openvino", lambda: faces).fingerprint
    held = bytearray(path.with_suffix(".bin").read_bytes())
    held[-1] ^= 1
    path.with_suffix(".bin").write_bytes(held)
    assert FileNetwork(path, "openvino", lambda: faces).fingerprint != before


def _narrow(folder: Path) -> Path:
    return openvino_file(folder, width=7)


def _gray(folder: Path) -> Path:
    return openvino_file(folder, channels=1)


def _text(folder: Path) -> Path:
    (folder / "tiny.xml").write_text("no network", encoding="utf-8")
    return folder / "tiny.xml"


def _without_weights(folder: Path) -> Path:
    path = openvino_file(folder)
    path.with_suffix(".bin").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder / "none.xml", "was not found in"),
        (lambda folder: folder, "is a folder: name the file"),
        (_text, "is no network that OpenVINO can read: name an .xml with its .bin beside it, or an .onnx"),
        (_without_weights, "is no network that OpenVINO can read"),
        (_narrow, "is of another kind: it takes [[1, 3, 32, 32]] and gives [[1, 7]]"),
        (_gray, "is of another kind: it takes [[1, 1, 32, 32]]"),
    ],
)
def test_a_file_that_is_no_identity_network_is_said(tmp_path: Path, make: Callable[[Path], Path], said: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        identity_networks([f"openvino:{make(tmp_path)}"])
    assert said in str(raised.value)


OWN = """
from commands.evaluate.networks.network import Embedded
import numpy as np
class Own:
    name, fingerprint = "mine", "7"
    def embed(self, pictures):
        return Embedded(np.ones((len(pictures), 3)), np.ones(len(pictures), bool))
class Pair:
    def embed(self, pictures):
        return [[1, 0]] * len(pictures), [True] * len(pictures)
    def similarity(self, left, right):
        return left @ right.T + 5
class Short:
    def embed(self, pictures):
        return [[1, 0]], [True]
class Wild:
    def embed(self, pictures):
        return [[float("nan")]] * len(pictures), [True] * len(pictures)
ready = Own()
nothing = object()
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_networks.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_networks", raising=False)


@pytest.mark.usefixtures("own")
def test_a_network_of_ones_own_is_an_object_or_what_makes_one() -> None:
    pair, ready = identity_networks(["python:own_networks:Pair", "python:own_networks:ready"])
    assert (pair.name, ready.name, ready.fingerprint) == ("Pair", "mine", "7")
    assert isinstance(ready.embed([NOBODY]), Embedded)
    said = pair.embed([NOBODY, NOBODY])
    assert pair.similarity(said.vectors, said.vectors).tolist() == [[6, 6], [6, 6]]
    assert ready.similarity(said.vectors, said.vectors) == pytest.approx(np.ones((2, 2)))


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("python:own_networks:Missing", "names no network"),
        ("python:no_such_module:x", "names no network (No module named 'no_such_module')"),
        ("python:own_networks", "names no network"),
        ("python:own_networks:nothing", "names no network"),
        ("arcface", "is no identity network: write dlib, openvino:FILE.xml"),
        ("openvino:", "is no identity network"),
    ],
)
def test_what_names_no_network_is_said(written: str, said: str) -> None:
    with pytest.raises(EvaluationError) as raised:
        identity_networks([written])
    assert said in str(raised.value)


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(("name", "said"), [("Short", "for 2 pictures"), ("Wild", "not finite")])
def test_answers_that_are_none_are_said(name: str, said: str) -> None:
    (network,) = identity_networks([f"python:own_networks:{name}"])
    with pytest.raises(EvaluationError, match=said):
        network.embed([NOBODY, NOBODY])


@pytest.mark.usefixtures("own")
def test_two_networks_of_one_name_are_said() -> None:
    with pytest.raises(EvaluationError, match="Two identity networks are called 'mine': rename one of the files"):
        identity_networks(["python:own_networks:ready", "python:own_networks:Own"])


@pytest.fixture
def tiny_clip(tmp_path: Path) -> str:
    """A CLIP of random weights, in a file as open_clip reads it."""
    import open_clip
    from safetensors.torch import save_file

    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "head_width": 32, "patch_size": 16},
        "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(config), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny-clip").state_dict(), tmp_path / "clip.safetensors")
    return f"tiny-clip:{tmp_path / 'clip.safetensors'}"


def test_clip_from_a_file_answers_as_open_clip_does(tiny_clip: str) -> None:
    import open_clip

    clip = Clip(tiny_clip)
    model, _, prepared = open_clip.create_model_and_transforms("tiny-clip", tiny_clip.partition(":")[2])
    model.eval()
    with torch.no_grad():
        picture = torch.nn.functional.normalize(model.encode_image(prepared(drawn_face())[None])).numpy()
        tokens = open_clip.get_tokenizer("tiny-clip")(["a face", "a cat"])
        texts = torch.nn.functional.normalize(model.encode_text(tokens)).numpy()
    assert clip.embed([drawn_face(), NOBODY]).vectors[:1] == pytest.approx(picture, abs=1e-5)
    assert clip.texts(["a face", "a cat"]) == pytest.approx(texts, abs=1e-5)


def test_a_clip_that_is_none_is_said(tiny_clip: str, tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("no weights", encoding="utf-8")
    for written, said in [
        ("ViT-X:clip.pt", "names no architecture of open_clip and its file"),
        ("ViT-L-14", "names no architecture of open_clip and its file"),
        (f"tiny-clip:{tmp_path / 'none.pt'}", "was not found in"),
        (f"tiny-clip:{tmp_path / 'text.pt'}", "does not hold the weights of tiny-clip"),
        (f"ViT-S-32:{tiny_clip.partition(':')[2]}", "does not hold the weights of ViT-S-32"),
    ]:
        with pytest.raises(EvaluationError) as raised:
            Clip(written)
        assert said in str(raised.value)
