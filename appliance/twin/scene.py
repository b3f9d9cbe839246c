"""What the camera sees: a printed, glossy cap on a belt, drawn with numpy and cv2. Seeded, a few ms a frame.

Order of drawing: belt, cap (rim, face, print), gloss, lamp, defect (so that its contrast is delivered, whatever the
lamp does), motion blur along the belt, sensor noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from appliance.twin.parts import CRACK_WIDTH, DIAMETER_PX, SCRATCH_WIDTH, Part

WIDTH, HEIGHT = 640, 480
CENTRE = (320.0, 240.0)
_PATCH = 340  # the part and its variation of place fit into a patch of this side around CENTRE
_LEFT, _TOP = int(CENTRE[0]) - _PATCH // 2, int(CENTRE[1]) - _PATCH // 2
_BELT_GREY = 58.0
_FACE_GREY = 142.0
_RIM_GREY = 112.0
_PRINT_GREY = -38.0
_RING = 0.66  # radius of the printed ring, as a fraction of the cap's
_NOISE_GREY = 2.0
_BLUR_PX = 1.25  # 0.25 ms of exposure at 500 mm/s and 10 px/mm

Image = npt.NDArray[np.uint8]
Field = npt.NDArray[np.float32]


def render(part: Part, *, lamp: float, frame_rng: np.random.Generator) -> Image:
    """The frame of ``part``: uint8 (480, 640). ``lamp``: brightness, 1 = as set up. ``frame_rng``: sensor noise."""
    looks = np.random.default_rng(part.seed)
    frame = empty_belt(lamp=lamp, frame_rng=frame_rng)
    x = CENTRE[0] - _LEFT + looks.uniform(-5, 5)
    y = CENTRE[1] - _TOP + looks.uniform(-5, 5)
    radius = DIAMETER_PX / 2 * looks.uniform(0.985, 1.015)
    turn = looks.uniform(0, 360)
    missing = part.size * 360 if part.kind == "misprint" else 0.0
    grey, inside = _cap(x, y, radius, turn, missing, looks)
    _gloss(grey, x, y, radius, looks)
    belt = frame[_TOP : _TOP + _PATCH, _LEFT : _LEFT + _PATCH].astype(np.float32)
    patch = belt + inside * (grey * np.float32(lamp) - belt)
    if part.kind and part.kind != "misprint":
        _DEFECTS[part.kind](patch, belt, part, x, y, radius, looks)
    patch = _motion_blur(patch)
    noise = frame_rng.standard_normal(patch.shape, dtype=np.float32)
    patch += noise * np.float32(_NOISE_GREY)
    np.clip(np.rint(patch), 0, 255, out=patch)
    frame[_TOP : _TOP + _PATCH, _LEFT : _LEFT + _PATCH] = patch.astype(np.uint8)
    return frame


def empty_belt(*, lamp: float, frame_rng: np.random.Generator) -> Image:
    """The belt without a part: uint8 (480, 640)."""
    texture = _belt_texture()
    shift = int(frame_rng.integers(WIDTH))
    frame = np.empty((HEIGHT, WIDTH), np.uint8)
    frame[:, shift:] = texture[:, : WIDTH - shift]
    frame[:, :shift] = texture[:, WIDTH - shift :]
    return frame if lamp == 1.0 else cv2.convertScaleAbs(frame, alpha=lamp)


@lru_cache(maxsize=1)
def _belt_texture() -> Image:
    rng = np.random.default_rng(1)
    rough = cv2.GaussianBlur(rng.standard_normal((HEIGHT, WIDTH)).astype(np.float32), (0, 0), 1.5)
    return np.clip(_BELT_GREY + 6 * rough + rng.standard_normal((HEIGHT, WIDTH)) * 2, 0, 255).astype(np.uint8)


@lru_cache(maxsize=1)
def _coordinates() -> tuple[Field, Field]:
    rows, columns = np.mgrid[0:_PATCH, 0:_PATCH].astype(np.float32)
    return columns, rows


@lru_cache(maxsize=1)
def _print_template() -> Field:
    """The print on a cap of radius 140 at turn 0, 1 = ink: a ring, three letters, two bars.

    Letters are strokes of ours: cv2.putText draws another font in each release."""
    ink = np.zeros((_PATCH, _PATCH), np.uint8)
    middle = _PATCH // 2
    cv2.circle(ink, (middle, middle), round(_RING * 140), 255, 4, cv2.LINE_AA)
    letters = (
        [(-26, -20), (-50, -20), (-50, 16), (-26, 16)],
        [(-14, 16), (-14, -20), (14, -20), (14, 16)],
        [(-14, 0), (14, 0)],
        [(26, 16), (26, -20), (50, -20), (50, -2), (26, -2)],
        [(-40, 36), (40, 36)],
        [(-24, -44), (24, -44)],
    )
    for stroke in letters:
        points = np.array([(middle + x, middle + y) for x, y in stroke], np.int32)
        cv2.polylines(ink, [points], False, 255, 6, cv2.LINE_AA)
    return ink.astype(np.float32) / np.float32(255)


def _cap(
    x: float, y: float, radius: float, turn: float, missing: float, looks: np.random.Generator
) -> tuple[Field, Field]:
    """(grey, share of cap in each pixel) of the cap without gloss; ``missing``: degrees of the ring left unprinted."""
    columns, rows = _coordinates()
    distance = np.hypot(columns - np.float32(x), rows - np.float32(y))
    inside = np.clip(np.float32(radius) - distance + np.float32(0.5), 0, 1)
    grey = np.where(distance < radius * 0.92, np.float32(_FACE_GREY), np.float32(_RIM_GREY))
    grey += looks.uniform(-6, 6)
    ink = _print_template()
    if missing:
        ink = ink.copy()
        middle = _PATCH / 2
        at = looks.uniform(0, 360)
        points = [(middle, middle)] + [
            (middle + 200 * math.cos(math.radians(at + angle)), middle + 200 * math.sin(math.radians(at + angle)))
            for angle in np.linspace(0, missing, 24)
        ]
        wedge = np.zeros_like(ink)
        cv2.fillPoly(wedge, [np.rint(np.array(points)).astype(np.int32)], 1.0)
        hole = np.hypot(columns - np.float32(middle), rows - np.float32(middle)) < 0.55 * 140
        ink[(wedge > 0) & ~hole] = 0
    matrix = cv2.getRotationMatrix2D((_PATCH / 2, _PATCH / 2), turn, radius / 140)
    matrix[:, 2] += (x - _PATCH / 2, y - _PATCH / 2)
    strength = np.float32(_PRINT_GREY * looks.uniform(0.92, 1.08))
    grey += strength * cv2.warpAffine(ink, matrix, (_PATCH, _PATCH), flags=cv2.INTER_LINEAR)
    return grey, inside.astype(np.float32)


def _gloss(grey: Field, x: float, y: float, radius: float, looks: np.random.Generator) -> None:
    columns, rows = _coordinates()
    angle, far = looks.uniform(0, 2 * math.pi), looks.uniform(0.1, 0.6) * radius
    centre_x, centre_y = x + far * math.cos(angle), y + far * math.sin(angle)
    width = np.float32(radius * looks.uniform(0.35, 0.55))
    squares = (columns - np.float32(centre_x)) ** 2 + (rows - np.float32(centre_y)) ** 2
    grey += np.float32(looks.uniform(15, 35)) * np.exp(-squares / (2 * width * width))


def _motion_blur(patch: Field) -> Field:
    edge = (_BLUR_PX - 1) / 2
    kernel = np.array([[edge, 1.0, edge]], np.float32) / np.float32(_BLUR_PX)
    return cv2.filter2D(patch, -1, kernel, borderType=cv2.BORDER_REPLICATE)


# --- defects ---------------------------------------------------------------------------------------------


def _add(patch: Field, mask: Field, grey: float, looks: np.random.Generator) -> None:
    """Lighter or darker by ``grey`` where mask is 1; darker where lighter would be cut off at white."""
    weight = float(mask.sum())
    around = float((patch * mask).sum()) / max(weight, 1e-6)
    lighter = looks.random() < 0.5 and around + grey < 235
    patch += mask * np.float32(grey if lighter else -grey)


def _place(x: float, y: float, reach: float, looks: np.random.Generator) -> tuple[float, float]:
    """A place on the cap, evenly over the area within ``reach`` of the centre."""
    angle, far = looks.uniform(0, 2 * math.pi), reach * math.sqrt(looks.random())
    return x + far * math.cos(angle), y + far * math.sin(angle)


def _disc(x: float, y: float, radius: float, squash: float = 1.0, turn: float = 0.0) -> Field:
    columns, rows = _coordinates()
    along = (columns - np.float32(x)) * math.cos(turn) + (rows - np.float32(y)) * math.sin(turn)
    across = -(columns - np.float32(x)) * math.sin(turn) + (rows - np.float32(y)) * math.cos(turn)
    far = np.hypot(along, across / np.float32(squash))
    return np.clip(np.float32(radius) - far + np.float32(0.5), 0, 1).astype(np.float32)


def _stroke(points: list[tuple[float, float]], width: float) -> Field:
    columns, rows = _coordinates()
    mask = np.zeros((_PATCH, _PATCH), np.float32)
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        dx, dy = x1 - x0, y1 - y0
        share = ((columns - np.float32(x0)) * dx + (rows - np.float32(y0)) * dy) / np.float32(dx * dx + dy * dy)
        share = np.clip(share, 0, 1)
        far = np.hypot(columns - (x0 + share * dx), rows - (y0 + share * dy))
        np.maximum(mask, np.clip(np.float32(width / 2) - far + np.float32(0.5), 0, 1), out=mask)
    return mask.astype(np.float32)


def _spot(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    size = part.size * DIAMETER_PX / 2
    at = _place(x, y, radius * 0.9 - size, looks)
    _add(patch, _disc(*at, size), part.grey, looks)


def _line(
    x: float, y: float, reach: float, length: float, bends: int, looks: np.random.Generator
) -> list[tuple[float, float]]:
    """A broken line of ``length`` px wholly within ``reach`` of the centre."""
    while True:
        turn = looks.uniform(0, 2 * math.pi)
        points = [_place(x, y, reach, looks)]
        for _ in range(bends + 1):
            turn += looks.uniform(-0.7, 0.7) if bends else 0.0
            step = length / (bends + 1)
            points.append((points[-1][0] + step * math.cos(turn), points[-1][1] + step * math.sin(turn)))
        if all(math.hypot(px - x, py - y) <= reach for px, py in points):
            return points


def _scratch(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    points = _line(x, y, radius * 0.9, part.size * DIAMETER_PX, 0, looks)
    _add(patch, _stroke(points, SCRATCH_WIDTH * min(part.step, 1.0) * DIAMETER_PX), part.grey, looks)


def _crack(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    points = _line(x, y, radius * 0.9, part.size * DIAMETER_PX, 3, looks)
    patch -= _stroke(points, CRACK_WIDTH * min(part.step, 1.0) * DIAMETER_PX) * np.float32(part.grey)


def _chip(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    depth = part.size * DIAMETER_PX
    angle = looks.uniform(0, 2 * math.pi)
    bite = _disc(x + radius * math.cos(angle), y + radius * math.sin(angle), depth)
    share = np.float32(min(1.0, part.step))  # a hard chip is shallow and shows the belt only in part
    patch += bite * share * (belt - patch)


def _stain(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    size = part.size * DIAMETER_PX / 2
    at = _place(x, y, radius * 0.88 - size, looks)
    mask = _disc(*at, size, looks.uniform(0.6, 1.0), looks.uniform(0, math.pi))
    mask = cv2.GaussianBlur(mask, (0, 0), 2.0)
    patch -= mask * np.float32(part.grey * 1.1)


def _dent(
    patch: Field, belt: Field, part: Part, x: float, y: float, radius: float, looks: np.random.Generator
) -> None:
    columns, rows = _coordinates()
    size = part.size * DIAMETER_PX / 2
    at_x, at_y = _place(x, y, radius * 0.85 - size, looks)
    turn = looks.uniform(0, 2 * math.pi)
    across = ((columns - at_x) * math.cos(turn) + (rows - at_y) * math.sin(turn)) / np.float32(size)
    squares = ((columns - at_x) ** 2 + (rows - at_y) ** 2) / np.float32(size * size)
    # Light on one flank, shadow on the other; 1.17 brings the flanks' peaks to the stated contrast.
    patch += (across * np.exp(-squares) * np.float32(part.grey * 2.33)).astype(np.float32)


_DEFECTS = {
    "spot": _spot, "scratch": _scratch, "crack": _crack, "chip": _chip, "stain": _stain, "dent": _dent,
}  # fmt: skip
