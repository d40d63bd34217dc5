"""``python -m devtools.gallery``: the README's strip of pictures, from the thumbnails of the workflows; runs in `.venv`."""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

from .places import REPOSITORY, WORKFLOWS

GALLERY = REPOSITORY / "docs" / "gallery.jpg"
SHOWN = {
    "one_photo": "one photo",
    "several_photos": "several photos",
    "two_people": "two people",
    "mix_two_faces": "a face between two",
    "art_style": "a style",
    "photo_to_pictures": "as an app",
}
"""Workflow -> what stands below its picture."""
COLUMNS, WIDTH, HEIGHT, CAPTION, GAP = 3, 320, 320, 26, 8
LARGEST = 100_000  # bytes


def make_gallery() -> Image.Image:
    """The thumbnails side by side, each whole in a field of its own."""
    rows = -(-len(SHOWN) // COLUMNS)
    size = (COLUMNS * (WIDTH + GAP) - GAP, rows * (HEIGHT + CAPTION + GAP) - GAP)
    gallery = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(gallery), ImageFont.load_default(size=16)
    for number, (name, caption) in enumerate(SHOWN.items()):
        x, y = (number % COLUMNS) * (WIDTH + GAP), (number // COLUMNS) * (HEIGHT + CAPTION + GAP)
        with Image.open(WORKFLOWS / f"{name}.jpg") as thumbnail:
            picture = thumbnail.convert("RGB")
        picture.thumbnail((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        gallery.paste(picture, (x + (WIDTH - picture.width) // 2, y + (HEIGHT - picture.height) // 2))
        draw.text((x + WIDTH / 2, y + HEIGHT + 4), caption, fill="black", font=font, anchor="ma")
    return gallery


def main() -> None:
    """Writes the picture as good as fits."""
    gallery = make_gallery()
    for quality in range(92, 40, -4):
        gallery.save(GALLERY, quality=quality, optimize=True)
        if GALLERY.stat().st_size <= LARGEST:
            return


if __name__ == "__main__":
    main()
