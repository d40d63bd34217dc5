"""Draws identities in scenes: a batch of 128x128 pictures from signed distances, every attribute known.

Lengths are pixels of a portrait (zoom 1), origin in the middle of the head, y downwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .attributes import DOMAINS, STYLES, Identity, Scene

SIZE = 128
HEAD = 42.0  # half the height of a face
ZOOM = (1.0, 1.3, 0.7)


def _palette(*colors: str) -> Tensor:
    return torch.tensor([[int(c[i : i + 2], 16) / 255 for i in (0, 2, 4)] for c in colors])


BACKGROUND = _palette("d84040", "e8924a", "ecd95c", "6cbf6a", "5a90e0", "a070d0", "9a9a9a", "f2f2f2")
SKIN = _palette("fbe3d2", "f2a9a0", "e3b565", "a8683a", "5c3a28", "9ccf8c")
HAIR = _palette("1c1a1c", "6b4020", "f0cf60", "c84a18", "e6e6ea", "2c50c8", "2a8a3a", "f070b8")
EYES = _palette("101010", "2070e0", "18a050", "f09a10", "9a30d8")
FUR = _palette("28262a", "8c8c90", "f4f4f2", "e88c34", "7c4a28", "ead8b0", "5078c0", "f0a0c0")
PAINT = _palette("000000", "3a1c10", "b83c44", "e01818", "1c3ce0", "f6e018")
CLOTHES = "b8c4cc"
STREAK = _palette("000000", "fafafa", "8a1cc8", "ff8a00")


class _Canvas:
    """A batch of pictures being painted, back to front.

    Args:
        color: of the background ``(B, 3, 1, 1)``.
        x, y: of every pixel ``(B, 1, H, W)``, in the lengths that shapes are given in.
        scale: pixels per such length.
        pen: pixels that a line of one pixel is wide, where a picture is larger than a portrait.
    """

    def __init__(self, color: Tensor, x: Tensor, y: Tensor, scale: Tensor, pen: float = 1.0) -> None:
        self.x, self.y, self.scale, self.pen = x, y, scale, pen
        self.picture = color.expand(-1, -1, *x.shape[-2:]).clone()
        self.ink = torch.zeros_like(x)

    def paint(self, distance: Tensor, color: Tensor, where: Tensor | None = None, outline: bool = True) -> None:
        """Fills ``distance < 0`` (B,1,H,W) with ``color`` (B,3,1,1), in the pictures where ``where`` (B,) holds."""
        pixels = distance * self.scale
        alpha = (0.5 - pixels).clamp(0, 1)
        line = (1.9 * self.pen - pixels.abs()).clamp(0, 1)
        if where is not None:
            chosen = where.view(-1, 1, 1, 1).to(alpha.dtype)
            alpha, line = alpha * chosen, line * chosen
        self.picture = torch.lerp(self.picture, color.expand_as(self.picture), alpha)
        self.ink = self.ink * (1 - alpha)
        if outline:
            self.ink = torch.maximum(self.ink, line)

    def ellipse(self, cx: Tensor | float, cy: Tensor | float, rx: Tensor | float, ry: Tensor | float) -> Tensor:
        rx, ry = torch.as_tensor(rx), torch.as_tensor(ry)
        return (((self.x - cx) / rx).square() + ((self.y - cy) / ry).square()).sqrt().sub(1) * torch.minimum(rx, ry)

    def box(self, cx: Tensor | float, cy: Tensor | float, hx: Tensor | float, hy: Tensor | float) -> Tensor:
        return torch.maximum((self.x - cx).abs() - hx, (self.y - cy).abs() - hy)

    def bar(self, cx: Tensor | float, cy: Tensor | float, length: float, width: float, slope: float) -> Tensor:
        u = ((self.x - cx) + slope * (self.y - cy)) / (1 + slope * slope) ** 0.5
        v = ((self.y - cy) - slope * (self.x - cx)) / (1 + slope * slope) ** 0.5
        return torch.maximum(u.abs() - length, v.abs() - width)


class _Batch:
    """Attribute columns of a batch of one domain, shaped for broadcasting over pixels."""

    def __init__(self, identities: Sequence[Identity]) -> None:
        self.spec = DOMAINS[identities[0].domain]
        self._named = torch.tensor([i.named for i in identities])
        self._marks = torch.tensor([i.marks for i in identities])
        self._geometry = torch.tensor([i.geometry for i in identities])

    def index(self, attribute: str) -> Tensor:
        return self._named[:, list(self.spec.named).index(attribute)]

    def mark(self, place: str) -> Tensor:
        return self._marks[:, list(self.spec.marks).index(place)]

    def has(self, attribute: str, value: str) -> Tensor:
        return self.index(attribute) == self.spec.named[attribute].index(value)

    def measure(self, name: str, low: float, high: float) -> Tensor:
        column = self._geometry[:, self.spec.geometry.index(name)].view(-1, 1, 1, 1)
        return low + (high - low) * column


def _color(palette: Tensor, index: Tensor) -> Tensor:
    return palette[index].view(-1, 3, 1, 1)


def _tone(value: str) -> Tensor:
    return _palette(value).view(1, 3, 1, 1)


def _mark(canvas: _Canvas, kind: Tensor, cx: Tensor | float, cy: Tensor | float) -> None:
    canvas.paint(canvas.ellipse(cx, cy, 4.2, 4.2), _color(PAINT, kind), kind == 1, outline=False)
    canvas.paint(canvas.bar(cx, cy, 8.5, 2.6, 0.6), _color(PAINT, kind), kind == 2, outline=False)
    canvas.paint(canvas.ellipse(cx, cy, 5.6, 5.6), _color(PAINT, kind), kind >= 3, outline=False)


def _accessory(canvas: _Canvas, kind: Tensor, half_width: Tensor, top: float, neck: float) -> None:
    """Hat and crown sit at ``top``, headphones around the head, the scarf at ``neck``."""
    a = half_width
    hat, gold, gray, red = _tone("283058"), _tone("ffc400"), _tone("20686c"), _tone("c01c50")
    dome = torch.maximum(canvas.ellipse(0.0, top + 12, a * 0.88, 30.0), canvas.y - (top + 14))
    canvas.paint(dome, hat, kind == 1)
    canvas.paint(canvas.box(0.0, top + 15, a + 11, 3.6), hat, kind == 1)
    teeth = (torch.remainder(canvas.x / (a * 0.42) + 0.5, 1.0) - 0.5).abs() * 20
    crown = torch.maximum(canvas.box(0.0, top + 1, a * 0.84, 13.0), (top - 13 + teeth) - canvas.y)
    canvas.paint(crown, gold, kind == 2)
    band = torch.maximum(canvas.ellipse(0.0, 0.0, a + 6.5, -top + 7).abs() - 3.0, canvas.y - 2)
    canvas.paint(band, gray, kind == 3)
    for side in (-1, 1):
        canvas.paint(canvas.ellipse(side * (a + 5), 2.0, 7.5, 13.0), gray, kind == 3)
    canvas.paint(canvas.box(0.0, neck, a * 0.8 + 4, 6.5), red, kind == 4)
    canvas.paint(canvas.box(-a * 0.45, neck + 14, 7.0, 14.0), red, kind == 4)


def _draw_faces(canvas: _Canvas, batch: _Batch, accessory: Tensor) -> None:
    x, y = canvas.x, canvas.y
    skin, hair = _color(SKIN, batch.index("skin")), _color(HAIR, batch.index("hair colour"))
    a = batch.measure("face width", 27.0, 40.0)
    eye_dx = a * batch.measure("eye spacing", 0.36, 0.56)
    eye_y = batch.measure("eye height", -13.0, 0.0)
    eye_r = batch.measure("eye size", 5.2, 8.6)
    mouth_y = batch.measure("mouth height", 19.0, 28.0)
    mouth_w = batch.measure("mouth width", 6.0, 19.0)
    nose = batch.measure("nose length", 3.0, 8.5)

    canvas.paint(canvas.ellipse(0.0, HEAD + 36, 44.0, 30.0), _tone(CLOTHES))
    canvas.paint(canvas.box(0.0, HEAD + 2, 11.0, 12.0), skin * 0.88)
    curly, long, mohawk = (batch.has("hair style", s) for s in ("curly", "long", "mohawk"))
    angle = torch.atan2(y + 14, x)
    canvas.paint(canvas.ellipse(0.0, -12.0, a + 13, 42.0) + 2.2 * torch.cos(11 * angle), hair, curly)
    canvas.paint(torch.maximum(canvas.ellipse(0.0, 0.0, a + 9, 62.0), y - 46), hair, long)

    taper = 1 - batch.measure("jaw", 0.0, 0.42) * (y / HEAD).clamp(0, 1.2).square()
    shaped = (((x / (a * taper.clamp_min(0.3))).square() + (y / HEAD).square()).sqrt() - 1) * torch.minimum(
        a, torch.tensor(HEAD)
    )
    canvas.paint(shaped, skin)
    beard = torch.maximum(shaped - 2.5, (mouth_y - 9) - y + 0.012 * (a - x.abs()).clamp_min(0) * 10)
    canvas.paint(beard, hair, batch.has("beard", "beard"))
    for place, cx, cy in (
        ("forehead", 0.0, -19.0),
        ("left cheek", -0.62 * a, 12.5),
        ("right cheek", 0.62 * a, 12.5),
        ("chin", 0.0, 36.0),
    ):
        _mark(canvas, batch.mark(place), cx, cy)
    canvas.paint(canvas.ellipse(0.0, eye_y + 8 + nose, 3.6, nose), skin * 0.74)
    canvas.paint(canvas.ellipse(0.0, mouth_y - 6.5, mouth_w * 0.75 + 7, 4.0), hair, batch.has("beard", "moustache"))
    canvas.paint(canvas.ellipse(0.0, mouth_y, mouth_w, 3.2), _tone("a02838"))
    iris = _color(EYES, batch.index("eye colour"))
    for side in (-1, 1):
        canvas.paint(canvas.ellipse(side * eye_dx, eye_y, eye_r * 1.25, eye_r), _tone("ffffff"))
        canvas.paint(canvas.ellipse(side * eye_dx, eye_y, eye_r * 0.78, eye_r * 0.78), iris, outline=False)
    frame = _tone("181820")
    for side in (-1, 1):
        ring = canvas.ellipse(side * eye_dx, eye_y, eye_r + 5, eye_r + 5).abs() - 1.8
        canvas.paint(ring, frame, batch.has("glasses", "round"), outline=False)
        square = canvas.box(side * eye_dx, eye_y, eye_r + 5, eye_r + 4).abs() - 1.9
        canvas.paint(square, frame, batch.has("glasses", "square"), outline=False)
    worn = ~batch.has("glasses", "none")
    canvas.paint(canvas.box(0.0, eye_y, (eye_dx - eye_r - 5).clamp_min(0.5), 1.4), frame, worn, outline=False)

    cap = torch.maximum(canvas.ellipse(0.0, 0.0, a + 3.5, HEAD + 4.5), y + 27 - 0.011 * x.square())
    canvas.paint(cap, hair, batch.has("hair style", "short") | curly | long)
    canvas.paint(torch.maximum(canvas.ellipse(0.0, -40.0, 9.5, 23.0), y + 25), hair, mohawk)
    streak = batch.mark("hair")
    lock = torch.maximum(canvas.ellipse(0.0, -40.0, 4.5, 16.0), torch.maximum(y + 25, -30 - HEAD - y))
    side_lock = torch.maximum(canvas.bar(a * 0.4, -36.0, 5.0, 14.0, 0.0), cap)
    canvas.paint(lock, _color(STREAK, streak), (streak > 0) & mohawk, outline=False)
    covered = (streak > 0) & ~mohawk & ~batch.has("hair style", "bald")
    canvas.paint(side_lock, _color(STREAK, streak), covered, outline=False)
    _accessory(canvas, accessory, a, -HEAD, HEAD + 7)


def _draw_cats(canvas: _Canvas, batch: _Batch, accessory: Tensor) -> None:
    y = canvas.y
    fur = _color(FUR, batch.index("fur"))
    dark = (fur.mean(1, keepdim=True) < 0.4).to(fur.dtype)
    second = fur * 0.5 * (1 - dark) + (fur + 0.4).clamp(0, 1) * dark
    a = batch.measure("face width", 30.0, 43.0)
    ear = batch.measure("ear size", 10.0, 20.0)
    ear_dx = a * batch.measure("ear spacing", 0.45, 0.8)
    eye_dx = a * batch.measure("eye spacing", 0.34, 0.56)
    eye_r = batch.measure("eye size", 5.5, 9.0)
    muzzle = batch.measure("muzzle size", 9.0, 19.0)
    top = 4.0 - 34.0

    canvas.paint(canvas.ellipse(0.0, HEAD + 34, 32.0, 34.0), fur * 0.92)
    for side, place in ((-1, "left ear"), (1, "right ear")):
        tip = top + 10 - 2.1 * ear
        wedge = torch.maximum((canvas.x - side * ear_dx).abs() - (y - tip) * 0.5, y - (top + 16)) * 0.9
        canvas.paint(wedge, fur)
        canvas.paint(wedge + 4.5, _tone("f0a0a8"), outline=False)
        kind = batch.mark(place)
        tipped = torch.maximum(wedge, y - (tip + ear * 0.9 + 6))
        canvas.paint(tipped, _color(STREAK, kind), kind > 0, outline=False)
    head = canvas.ellipse(0.0, 4.0, a, 34.0)
    canvas.paint(head, fur)
    masked, striped, patch = (batch.has("pattern", p) for p in ("masked", "striped", "patch"))
    canvas.paint(torch.maximum(head, -2 - y + 0.02 * canvas.x.square()), second, masked, outline=False)
    bars = (torch.remainder(canvas.x / 13 + 0.5, 1.0) - 0.5).abs() * 13 - 2.8
    canvas.paint(torch.maximum(head, torch.maximum(bars, y + 12)), second, striped, outline=False)
    canvas.paint(torch.maximum(head, canvas.ellipse(eye_dx, -3.0, 15.0, 15.0)), second, patch, outline=False)
    for place, cx, cy in (("forehead", 0.0, -18.0), ("left cheek", -0.68 * a, 15.0), ("right cheek", 0.68 * a, 15.0)):
        _mark(canvas, batch.mark(place), cx, cy)
    canvas.paint(canvas.ellipse(0.0, 20.0, muzzle, 9.5), _tone("fff4ec"))
    canvas.paint(canvas.ellipse(0.0, 14.0, 5.2, 3.6), _tone("d85878"), outline=False)
    canvas.paint(canvas.box(0.0, 22.0, 5.0, 1.3), _tone("602030"), outline=False)
    iris = _color(EYES, batch.index("eye colour"))
    for side in (-1, 1):
        canvas.paint(canvas.ellipse(side * eye_dx, -3.0, eye_r * 1.2, eye_r), _tone("ffffff"))
        canvas.paint(canvas.ellipse(side * eye_dx, -3.0, eye_r * 0.8, eye_r * 0.85), iris, outline=False)
    _accessory(canvas, accessory, a, top, HEAD + 3)


_DRAWERS = {"face": _draw_faces, "cat": _draw_cats}
_BLUR = torch.tensor([0.054, 0.244, 0.404, 0.244, 0.054])


def _blur(picture: Tensor) -> Tensor:
    channels = picture.shape[1]
    kernel = (_BLUR[:, None] * _BLUR[None]).expand(channels, 1, 5, 5)
    return F.conv2d(F.pad(picture, (2, 2, 2, 2), mode="replicate"), kernel, groups=channels)


def _stylise(canvas: _Canvas, style: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """photo: soft light; pencil sketch: pale colors and dark lines; pixel art: 4-pixel blocks; watercolor: washed.

    All are blurred by one pixel: eight-fold compression to four channels cannot keep anything sharper.
    """
    picture, out = canvas.picture, torch.empty_like(canvas.picture)
    for index, name in enumerate(STYLES):
        rows = style == index
        if not rows.any():
            continue
        p = picture[rows]
        if name == "photo":
            light = 1.04 - 0.16 * (x + 0.6 * y) / SIZE
            p = p * light
        elif name == "pencil sketch":
            p = (1 - 0.5 * (1 - p)) * (1 - 0.8 * canvas.ink[rows])
        elif name == "pixel art":
            p = F.interpolate(F.avg_pool2d(p, 4), scale_factor=4, mode="nearest")
        else:
            wash = 0.06 * torch.sin(x / 15.0) * torch.cos(y / 19.0)
            p = 0.12 + 0.86 * _blur(p) + wash
        out[rows] = _blur(p)
    return out.clamp(0, 1)


@torch.no_grad()
def render(identities: Sequence[Identity], scenes: Sequence[Scene]) -> Tensor:
    """Pictures ``(B, 3, 128, 128)`` in [0, 1]; domains may be mixed."""
    result = torch.empty(len(identities), 3, SIZE, SIZE)
    for domain in DOMAINS:
        rows = [i for i, identity in enumerate(identities) if identity.domain == domain]
        if not rows:
            continue
        batch = _Batch([identities[i] for i in rows])
        chosen = [scenes[i] for i in rows]
        scale = torch.tensor([ZOOM[s.zoom] for s in chosen]).view(-1, 1, 1, 1)
        shift = torch.tensor([s.shift for s in chosen])
        grid = torch.arange(SIZE, dtype=torch.float32) + 0.5
        gy, gx = torch.meshgrid(grid, grid, indexing="ij")
        x = (gx[None, None] - SIZE / 2 - shift[:, 0].view(-1, 1, 1, 1)) / scale
        y = (gy[None, None] - SIZE / 2 - 5 - shift[:, 1].view(-1, 1, 1, 1)) / scale
        canvas = _Canvas(_color(BACKGROUND, torch.tensor([s.background for s in chosen])), x, y, scale)
        _DRAWERS[domain](canvas, batch, torch.tensor([s.accessory for s in chosen]))
        result[rows] = _stylise(canvas, torch.tensor([s.style for s in chosen]), gx - SIZE / 2, gy - SIZE / 2)
    return result


@dataclass(frozen=True)
class Placed:
    """Someone in a picture larger than a portrait.

    Attributes:
        left, top, side: in pixels, the square that would be a portrait of this individual.
        accessory: index into ``ACCESSORIES``.
    """

    identity: Identity
    left: float
    top: float
    side: float
    accessory: int = 0


@dataclass(frozen=True)
class Thing:
    """Something in the background: a box of one of its colors; left, top, width and height in pixels."""

    left: float
    top: float
    width: float
    height: float
    color: int


@torch.no_grad()
def render_picture(
    width: int, height: int, background: int, people: Sequence[Placed], things: Sequence[Thing] = ()
) -> Tensor:
    """A photo ``(3, height, width)`` in [0, 1] of any size, of things and, before them, individuals, painted in order.

    Who is alone in a square of 128 pixels, without things, is drawn as :func:`render` draws a portrait, but for the body,
    which goes on below the shoulders here.
    """
    rows, columns = (torch.arange(size, dtype=torch.float32) + 0.5 for size in (height, width))
    gy, gx = torch.meshgrid(rows, columns, indexing="ij")
    gx, gy = gx[None, None], gy[None, None]
    one = torch.ones(1, 1, 1, 1)
    canvas = _Canvas(_color(BACKGROUND, torch.tensor([background])), gx, gy, one)
    for thing in things:
        half_width, half_height = thing.width / 2, thing.height / 2
        middle = thing.left + half_width, thing.top + half_height
        box = canvas.box(*middle, torch.tensor(half_width), torch.tensor(half_height))
        canvas.paint(box, _color(BACKGROUND, torch.tensor([thing.color])))
    for person in people:
        canvas.pen = person.side / SIZE
        canvas.scale = one * canvas.pen
        canvas.x = (gx - person.left - person.side / 2) / canvas.scale
        canvas.y = (gy - person.top - person.side / 2) / canvas.scale - 5
        batch, accessory = _Batch([person.identity]), torch.tensor([person.accessory])
        if person.identity.domain == "face":
            canvas.paint(canvas.box(0.0, HEAD + 136, 44.0, 100.0), _tone(CLOTHES))
        _DRAWERS[person.identity.domain](canvas, batch, accessory)
    shorter = min(width, height)
    light_x, light_y = ((at - size / 2) * SIZE / shorter for at, size in ((gx, width), (gy, height)))
    return _stylise(canvas, torch.tensor([0]), light_x[0, 0], light_y[0, 0])[0]
