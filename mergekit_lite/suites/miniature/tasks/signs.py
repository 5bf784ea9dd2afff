"""Traffic signs before streets and trees: the counterpart of GTSRB."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mergekit_lite.suites.miniature.canvas import (
    Canvas,
    Frame,
    box,
    disc,
    either,
    glyph,
    line,
    polygon,
    regular,
    ring,
    strokes,
)
from mergekit_lite.suites.miniature.drawing import DrawnClass, DrawnTask

Symbol = Callable[[Canvas, Frame], None]
Plate = Callable[..., None]  # (canvas, symbol=...)
RED, BLUE, YELLOW = (0.96, 1.02), (0.58, 0.64), (0.12, 0.15)


def street(c: Canvas) -> Frame:
    """Paint a blurred background and return where the sign goes."""
    c.fill(c.colour(saturation=(0, 0.5), value=(0.3, 0.9)))
    c.shade(0.22 * c.noise(3, 2))
    return c.placed(size=(0.7, 0.95), turn=0.15, shift=0.12, stretch=0.12)


def warning(c: Canvas, symbol: Symbol) -> None:
    """Draw a white triangle with a red rim."""
    f = street(c)
    c.paint(regular(f, 3, 1.05), c.colour(RED, (0.7, 1), (0.5, 0.95)), f)
    inner = f.moved(0, 0.02)
    c.paint(regular(inner, 3, 0.68), c.grey(0.8, 1), f)
    symbol(c, f.moved(0, 0.12).scaled(0.4))


def prohibition(c: Canvas, symbol: Symbol) -> None:
    """Draw a white disc with a red rim."""
    f = street(c)
    c.paint(disc(f, 0.92), c.colour(RED, (0.7, 1), (0.5, 0.95)), f)
    c.paint(disc(f, 0.68), c.grey(0.8, 1), f)
    symbol(c, f.scaled(0.55))


def mandatory(c: Canvas, symbol: Symbol) -> None:
    """Draw a blue disc."""
    f = street(c)
    c.paint(disc(f, 0.92), c.grey(0.8, 1), f)
    c.paint(disc(f, 0.84), c.colour(BLUE, (0.7, 1), (0.4, 0.8)), f)
    symbol(c, f.scaled(0.6))


def words(c: Canvas, f: Frame, text: str) -> None:
    """Write `text` in black."""
    c.blend(glyph(c, f, text, font=1), c.grey(0.0, 0.15))


def black(c: Canvas, f: Frame, shape: Callable[[Frame], Tensor]) -> None:
    """Paint a black symbol."""
    c.paint(shape(f), c.grey(0.0, 0.15), f)


def white(c: Canvas, f: Frame, shape: Callable[[Frame], Tensor]) -> None:
    """Paint a white symbol."""
    c.paint(shape(f), c.grey(0.9, 1), f)


def arrow(f: Frame, angle: float) -> Tensor:
    """Return an arrow that points up, turned by `angle`."""
    f = f.turned(angle)
    return either(box(f, 0.16, 0.75, 0, 0.15), polygon(f, [(0, -1), (0.6, -0.25), (-0.6, -0.25)]))


def bend(f: Frame, side: int) -> Tensor:
    """Return an arrow that turns to the left (-1) or the right (1)."""
    f = Frame(f.u * side, f.v, f.soft)
    return either(
        strokes(f, [(-0.4, 0.95), (-0.4, -0.2), (0.3, -0.2)], 0.32),
        polygon(f, [(0.25, -0.75), (0.95, -0.2), (0.25, 0.35)]),
    )


def bump(f: Frame) -> Tensor:
    """Return two bumps on a road."""
    return either(box(f, 1, 0.12, 0, 0.6), disc(f, 0.4, -0.45, 0.4), disc(f, 0.4, 0.45, 0.4))


def walker(f: Frame) -> Tensor:
    """Return a walking person."""
    body = strokes(f, [(-0.5, 0.95), (0, 0.25), (0, -0.35), (0.5, 0.1)], 0.24)
    return either(
        disc(f, 0.22, 0, -0.75), body, line(f, (0, 0.25), (0.5, 0.95), 0.24), line(f, (0, -0.35), (-0.5, 0.05), 0.2)
    )


def flake(f: Frame) -> Tensor:
    """Return a snowflake."""
    arms = [line(f.turned(k * 1.0472), (0, -0.95), (0, 0.95), 0.2) for k in range(3)]
    return either(*arms)


def roundabout(f: Frame) -> Tensor:
    """Return three arrows that chase one another."""
    heads = [polygon(f.turned(k * 2.0944), [(0.15, -1.0), (0.75, -0.6), (0.15, -0.2)]) for k in range(3)]
    return either(ring(f, 0.62, 0.24), *heads)


def car(f: Frame, x: float = 0.0) -> Tensor:
    """Return a small car seen from behind."""
    return either(
        box(f, 0.34, 0.2, x, 0.1),
        box(f, 0.24, 0.2, x, -0.2),
        box(f, 0.08, 0.12, x - 0.24, 0.35),
        box(f, 0.08, 0.12, x + 0.24, 0.35),
    )


def skid(f: Frame) -> Tensor:
    """Return a car with wavy tracks."""
    tracks = [strokes(f, [(x, 0.9), (x + 0.15, 0.7), (x - 0.1, 0.5)], 0.14) for x in (-0.3, 0.3)]
    return either(car(f.moved(0, -0.35).scaled(1.3)), *tracks)


def stop(c: Canvas) -> None:
    """Draw the red octagon."""
    f = street(c)
    c.paint(regular(f, 8, 1.0, 0.3927), c.grey(0.85, 1), f)
    c.paint(regular(f, 8, 0.9, 0.3927), c.colour(RED, (0.7, 1), (0.5, 0.9)), f)
    c.blend(glyph(c, f.scaled(0.68), "STOP", font=1), c.grey(0.9, 1))


def priority(c: Canvas) -> None:
    """Draw the yellow diamond."""
    f = street(c)
    c.paint(regular(f, 4, 1.05), c.grey(0.85, 1), f)
    c.paint(regular(f, 4, 0.78), c.colour(YELLOW, (0.8, 1), (0.8, 1)), f)


def give_way(c: Canvas) -> None:
    """Draw the triangle that stands on its tip."""
    f = street(c)
    c.paint(regular(f, 3, 1.05, 3.14159), c.colour(RED, (0.7, 1), (0.5, 0.95)), f)
    c.paint(regular(f, 3, 0.62, 3.14159), c.grey(0.8, 1), f)


def no_entry(c: Canvas) -> None:
    """Draw the red disc with a bar."""
    f = street(c)
    c.paint(disc(f, 0.92), c.colour(RED, (0.7, 1), (0.5, 0.95)), f)
    c.paint(box(f, 0.62, 0.17), c.grey(0.85, 1), f)


def _sign(name: str, caption: str, plate: Plate, symbol: Symbol) -> DrawnClass:
    return DrawnClass(name, caption, partial(plate, symbol=symbol))


CLASSES = (
    *(
        _sign(f"red and white circle {v} kph speed limit", f"limit {v}", prohibition, partial(words, text=str(v)))
        for v in (20, 30, 50, 70, 80)
    ),
    DrawnClass("red octagon stop", "halt", stop),
    DrawnClass("white and yellow diamond priority road", "main street", priority),
    DrawnClass("red and white upside down triangle yield right-of-way", "give way", give_way),
    DrawnClass("red circle with white horizonal stripe no entry", "wrong way", no_entry),
    _sign("empty red and white circle", "closed street", prohibition, lambda c, f: None),
    _sign(
        "no vehicles over taking",
        "no passing",
        prohibition,
        partial(black, shape=lambda f: either(car(f, -0.5), car(f, 0.5))),
    ),
    _sign(
        "red and white triangle road intersection warning",
        "crossroads",
        warning,
        partial(
            black,
            shape=lambda f: either(line(f, (-0.7, -0.7), (0.7, 0.7), 0.4), line(f, (-0.7, 0.7), (0.7, -0.7), 0.4)),
        ),
    ),
    _sign(
        "red and white triangle with exclamation mark warning",
        "caution",
        warning,
        partial(black, shape=lambda f: either(box(f, 0.18, 0.6, 0, -0.3), disc(f, 0.24, 0, 0.75))),
    ),
    _sign("red and white triangle rough bumpy road warning", "bumps", warning, partial(black, shape=bump)),
    _sign("red and white triangle car skidding slipping warning", "wet road", warning, partial(black, shape=skid)),
    _sign("red and white triangle person walking warning", "pedestrians", warning, partial(black, shape=walker)),
    _sign("red and white triangle with snowflake ice warning", "frost", warning, partial(black, shape=flake)),
    _sign(
        "blue circle with white right turn arrow mandatory",
        "turn right",
        mandatory,
        partial(white, shape=partial(bend, side=1)),
    ),
    _sign(
        "blue circle with white left turn arrow mandatory",
        "turn left",
        mandatory,
        partial(white, shape=partial(bend, side=-1)),
    ),
    _sign(
        "blue circle with white forward arrow mandatory",
        "straight on",
        mandatory,
        partial(white, shape=partial(arrow, angle=0.0)),
    ),
    _sign(
        "blue circle with white keep right arrow mandatory",
        "pass right",
        mandatory,
        partial(white, shape=partial(arrow, angle=2.3562)),
    ),
    _sign("blue circle with arrows indicating a traffic circle", "rotary", mandatory, partial(white, shape=roundabout)),
)
TASK = DrawnTask(
    name="signs",
    title="Traffic signs",
    counterpart="GTSRB",
    kind="road sign",
    templates=(
        'a zoomed in photo of a "{}" traffic sign.',
        'a centered photo of a "{}" traffic sign.',
        'a close up photo of a "{}" traffic sign.',
    ),
    classes=CLASSES,
    zero_shot=32.53,
    grain=0.05,
)
