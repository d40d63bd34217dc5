"""The demo's contact sheet shows the photo and every picture in its place."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.contact_sheet import CAPTION, GAP, LABEL, PICTURE, contact_sheet


def test_every_picture_stands_in_its_row_and_column(tmp_path: Path) -> None:
    rows = {}
    for i, row in enumerate(("word", "face")):
        rows[row] = []
        for j in range(4):
            Image.new("RGB", (128, 128), (40 * i + 10, 50 * j + 10, 200)).save(tmp_path / f"{row}{j}.png")
            rows[row].append({"prompt": "a photo of S*, with a rather long text", "seed": j, "image": f"{row}{j}.png"})
    Image.new("RGB", (128, 128), "red").save(tmp_path / "photo.png")
    report = {"photo": "photo.png", "word": "S*", "domain_word": "face", "rows": rows}
    sheet = contact_sheet(report, tmp_path)
    half = PICTURE // 2
    assert sheet.getpixel((GAP + half, sheet.height // 2)) == (255, 0, 0)
    for i in range(2):
        for j in range(4):
            left = 2 * GAP + (j + 1) * (PICTURE + GAP)
            top = GAP + i * (LABEL + PICTURE + CAPTION + GAP) + LABEL
            assert sheet.getpixel((left + half, top + half)) == (40 * i + 10, 50 * j + 10, 200)
