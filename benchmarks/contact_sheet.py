"""Puts what `dev.py demo` drew on one sheet: the photo | the prompts with the word | the same with the domain's word.

python -m benchmarks.contact_sheet .dev/demo/demo.json sheet.png
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PICTURE = 256
"""Edge of a picture on the sheet, in pixels; the mini world's 128-pixel pictures are shown at twice their size."""
GAP, LABEL = 14, 24
CAPTION, LETTERS = 40, 42
"""Room below a picture for two lines of text, in pixels, and the letters that fit into a line."""
PAPER, INK, GRAY = "white", "black", "#666666"


def contact_sheet(report: dict[str, Any], folder: Path) -> Image.Image:
    """The sheet of one demo: `report` is its demo.json, whose picture names are relative to `folder`.

    Two rows (with the word, with the domain's word), a column per prompt, the photo at the left of both.
    """
    rows = [(f"with {report['word']}", report["rows"]["word"])]
    rows.append((f"same prompt and seed with “{report['domain_word']}”", report["rows"]["face"]))
    columns = len(report["rows"]["word"])
    cell = LABEL + PICTURE + CAPTION
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
            label = "\n".join(textwrap.wrap(f"{picture['prompt']}  ·  seed {picture['seed']}", LETTERS))
            draw.text((left, top + LABEL + PICTURE + 4), label, GRAY, font(13))
    return sheet


def thumbnail(report: dict[str, Any], folder: Path) -> Image.Image:
    """What the template browser shows: the photo, marked as such, and three pictures with the word, as a square."""
    pictures = [report["photo"], *(picture["image"] for picture in report["rows"]["word"][:3])]
    square = Image.new("RGB", (2 * PICTURE, 2 * PICTURE), PAPER)
    for i, name in enumerate(pictures):
        square.paste(shown(folder / name), (i % 2 * PICTURE, i // 2 * PICTURE))
    draw = ImageDraw.Draw(square)
    draw.rectangle((0, 0, 84, LABEL), PAPER)
    draw.text((6, 3), "the photo", INK, font(15))
    return square


def font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font: the sheet looks the same on every machine."""
    return ImageFont.load_default(size)


def shown(file: Path) -> Image.Image:
    """The picture at the sheet's size; small ones are enlarged without blur, so that nothing is made prettier."""
    picture = Image.open(file).convert("RGB")
    smooth = picture.width > PICTURE or picture.height > PICTURE
    return picture.resize((PICTURE, PICTURE), Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="the demo.json that dev.py demo wrote")
    parser.add_argument("sheet", type=Path, help="the picture to write (.png or .jpg)")
    parser.add_argument("--thumbnail", action="store_true", help="the small picture of the template browser instead")
    arguments = parser.parse_args()
    report = json.loads(arguments.report.read_text(encoding="utf-8"))
    compose = thumbnail if arguments.thumbnail else contact_sheet
    compose(report, arguments.report.parent).save(arguments.sheet, quality=92)


if __name__ == "__main__":
    main()
