"""Puts what `dev.py demo` drew on one sheet: the photo | the prompts with the word | the same with the domain's word.

python -m benchmarks.contact_sheet .dev/demo/demo.json sheet.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PICTURE = 256
"""Edge of a picture on the sheet, in pixels; the mini world's 128-pixel pictures are shown at twice their size."""
GAP, LABEL = 14, 24
PAPER, INK, GRAY = "white", "black", "#666666"


def contact_sheet(report: dict[str, Any], folder: Path) -> Image.Image:
    """The sheet of one demo: `report` is its demo.json, whose picture names are relative to `folder`.

    Two rows (with the word, with the domain's word), a column per prompt, the photo at the left of both.
    """
    rows = [(f"with {report['word']}", report["rows"]["word"])]
    rows.append((f"same prompt and seed with “{report['domain_word']}”", report["rows"]["face"]))
    columns = len(report["rows"]["word"])
    cell = PICTURE + 2 * LABEL
    sheet = Image.new("RGB", ((columns + 1) * (PICTURE + GAP) + 2 * GAP, 2 * (cell + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    photo_top = (sheet.height - PICTURE) // 2
    draw.text((GAP, photo_top - LABEL), "the photo", INK, font(17))
    sheet.paste(shown(folder / report["photo"]), (GAP, photo_top))
    for i, (title, pictures) in enumerate(rows):
        top = GAP + i * (cell + GAP)
        for j, picture in enumerate(pictures):
            left = 2 * GAP + (j + 1) * (PICTURE + GAP)
            if j == 0:
                draw.text((left, top), title, INK, font(17))
            sheet.paste(shown(folder / picture["image"]), (left, top + LABEL))
            label = fitted(f"{picture['prompt']}  ·  seed {picture['seed']}", draw)
            draw.text((left, top + LABEL + PICTURE + 4), label[0], GRAY, label[1])
    return sheet


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font: the sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def fitted(text: str, draw: ImageDraw.ImageDraw) -> tuple[str, Any]:
    """`text` and the largest font of at most 13 pixels in which it is no wider than a picture."""
    size = next((size for size in (13, 12, 11, 10) if draw.textlength(text, font=font(size)) <= PICTURE), 9)
    return text, font(size)


def shown(file: Path) -> Image.Image:
    """The picture at the sheet's size; small ones are enlarged without blur, so that nothing is made prettier."""
    picture = Image.open(file).convert("RGB")
    smooth = picture.width > PICTURE or picture.height > PICTURE
    return picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the demo.json that dev.py demo wrote")
    parser.add_argument("sheet", type=Path, help="the picture to write (.png or .jpg)")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    contact_sheet(report, arguments.report.parent).save(arguments.sheet, quality=92)


if __name__ == "__main__":
    main()
