"""A small canvas on Pillow: drawn larger than asked for and scaled down, for smooth edges."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from .shapes import Contour, Point

Colour = tuple[int, int, int]
OVERSAMPLE = 4


def mixed(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with `share` (0..1) of `second` in it."""
    red, green, blue = (
        round(a * (1 - share) + b * share) for a, b in zip(first, second, strict=True)
    )
    return (red, green, blue)


class Canvas:
    """Coordinates are fractions of the picture: (0, 0) is the top left corner, (1, 1) the other."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.side = pixels * OVERSAMPLE
        self.image = Image.new("RGB", (self.side, self.side))
        self.pen = ImageDraw.Draw(self.image)

    def finished(self) -> Image.Image:
        return self.image.resize((self.pixels, self.pixels), Image.Resampling.BOX)

    def fill(self, colour: Colour) -> None:
        self.pen.rectangle((0, 0, self.side, self.side), fill=colour)

    def gradient(self, top: Colour, bottom: Colour) -> None:
        ramp = Image.linear_gradient("L").resize((self.side, self.side))
        self.image.paste(Image.composite(self._sheet(bottom), self._sheet(top), ramp))

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.pen.polygon(self._scaled(points), fill=colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        left, top = (x - radius) * self.side, (y - radius) * self.side
        right, bottom = (x + radius) * self.side, (y + radius) * self.side
        self.pen.ellipse((left, top, right, bottom), fill=colour)

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """An open line with round ends and joints."""
        self.pen.line(self._scaled(points), colour, round(width * self.side), joint="curve")
        for x, y in (points[0], points[-1]):
            self.disc(x, y, width / 2, colour)

    def mask(self, contours: Sequence[Contour], grow: float = 0.0) -> Image.Image:
        """Where the contours are, made larger by `grow` on the outside (and into the holes)."""
        mask = Image.new("L", (self.side, self.side), 0)
        pen = ImageDraw.Draw(mask)
        for contour in contours:
            pen.polygon(self._scaled(contour.points), fill=0 if contour.hole else 255)
        for contour in contours if grow else ():
            closed = self._scaled(contour.points + contour.points[:2])
            pen.line(closed, fill=255, width=round(2 * grow * self.side), joint="curve")
        return mask

    def paste(self, colour: Colour | Image.Image, mask: Image.Image) -> None:
        self.image.paste(colour, (0, 0), mask)

    def sheet(self, colour: Colour) -> "Canvas":
        """An empty canvas of the same size in one colour, to draw a pattern on."""
        other = Canvas(self.pixels)
        other.fill(colour)
        return other

    def _sheet(self, colour: Colour) -> Image.Image:
        return Image.new("RGB", (self.side, self.side), colour)

    def _scaled(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]


class Frame:
    """A place on a canvas: the local frame of one object, in units of its radius."""

    def __init__(self, canvas: Canvas, x: float, y: float, radius: float) -> None:
        self.canvas, self.x, self.y, self.radius = canvas, x, y, radius

    def placed(self, points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple((self.x + x * self.radius, self.y + y * self.radius) for x, y in points)

    def contours(self, contours: Sequence[Contour]) -> list[Contour]:
        return [Contour(self.placed(contour.points), contour.hole) for contour in contours]

    def solid(
        self, contours: Sequence[Contour], colour: Colour | Image.Image, edge: Colour, width: float
    ) -> None:
        """Filled contours with an edge of `width` (a fraction of the picture) around them."""
        placed = self.contours(contours)
        if width:
            self.canvas.paste(edge, self.canvas.mask(placed, width))
        self.canvas.paste(colour, self.canvas.mask(placed))

    def line(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        self.canvas.line(self.placed(points), width * self.radius, colour)

    def disc(self, x: float, y: float, radius: float, colour: Colour) -> None:
        (centre,) = self.placed([(x, y)])
        self.canvas.disc(*centre, radius * self.radius, colour)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        self.canvas.polygon(self.placed(points), colour)
