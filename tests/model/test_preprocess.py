"""The definition of preprocess by hand-worked cases, and the fast path against it over formats, sizes and ROIs."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from appliance.model import pixels
from appliance.model.bundle import InputSpec
from appliance.model.pixels import FORMATS, bytes_per_row, channels, frame_bytes, quads
from appliance.model.preprocess import (
    balance,
    bilinear,
    content_box,
    halve,
    histogram,
    laplacian_variance,
    luma,
    prepare,
    to_float,
)  # fmt: skip
from appliance.model.preprocess_cv2 import CvSteps, FastPreprocess, prepare_cv2

U8 = npt.NDArray[np.uint8]


def spec(size: tuple[int, int] = (20, 16), channels: int = 1, fit: str = "stretch") -> InputSpec:
    mean, std = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)) if channels == 3 else ((0.5,), (0.25,))
    return InputSpec.model_validate({"tensor": "image", "size": size, "channels": channels, "fit": fit, "mean": mean, "std": std})


def camera_bytes(pixel: str, width: int, height: int, padding: int, seed: int) -> tuple[U8, int]:
    """Random bytes as a camera with rows ``padding`` bytes too long gives them, and the pitch."""
    pitch = bytes_per_row(pixel, width) + padding
    return np.random.default_rng(seed).integers(0, 256, frame_bytes(pixel, width, height, pitch)).astype(np.uint8), pitch


# --- colour ------------------------------------------------------------------------------------------


def test_mono_words_are_top_aligned_little_endian() -> None:
    memory = np.array([0x00, 0x80, 0xFF, 0xFF], np.uint8)
    image = channels(memory, (2, 1), 4, "mono12")
    assert image.tolist() == [[0x8000, 0xFFFF]]
    assert to_float(image)[0] == pytest.approx([0x8000 / 65535 * 255, 255.0])


def test_bgr_and_rgb_differ_by_order_only() -> None:
    memory = np.arange(12, dtype=np.uint8)
    assert np.array_equal(channels(memory, (2, 2), 6, "bgr8"), channels(memory, (2, 2), 6, "rgb8")[:, :, ::-1])


@pytest.mark.parametrize(
    ("y", "u", "v", "rgb"),
    [(128, 128, 128, (128, 128, 128)), (0, 128, 128, (0, 0, 0)), (255, 128, 128, (255, 255, 255)),
     (76, 85, 255, (254, 0, 0)), (150, 44, 21, (0, 255, 1)), (29, 255, 107, (0, 0, 254))],
)  # fmt: skip
def test_yuv_is_bt601_full_range(y: int, u: int, v: int, rgb: tuple[int, int, int]) -> None:
    yuyv = np.array([y, u, y, v], np.uint8)
    uyvy = np.array([u, y, v, y], np.uint8)
    nv12 = np.array([y, y, y, y, u, v], np.uint8)
    assert channels(yuyv, (2, 1), 4, "yuyv")[0, 1].tolist() == pytest.approx(rgb, abs=1)
    assert np.array_equal(channels(yuyv, (2, 1), 4, "yuyv"), channels(uyvy, (2, 1), 4, "uyvy"))
    assert np.array_equal(channels(nv12, (2, 2), 2, "nv12")[0], channels(yuyv, (2, 1), 4, "yuyv")[0])


def test_yuv_integers_are_the_rounded_real_numbers() -> None:
    rng = np.random.default_rng(1)
    memory = rng.integers(0, 256, 4 * 5000).astype(np.uint8)
    y, u, v = memory[0::2].astype(float), memory[1::4].repeat(2) - 128.0, memory[3::4].repeat(2) - 128.0
    exact = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], 1)
    found = channels(memory, (10000, 1), 20000, "yuyv")[0].astype(float)
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 0.502


@pytest.mark.parametrize(
    ("y", "u", "v", "rgb"),
    [(16, 128, 128, (0, 0, 0)), (235, 128, 128, (255, 255, 255)), (126, 128, 128, (128, 128, 128)),
     (81, 90, 240, (254, 0, 0)), (145, 54, 34, (0, 255, 1)), (41, 240, 110, (0, 0, 255)),
     (0, 128, 128, (0, 0, 0)), (255, 128, 128, (255, 255, 255))],
)  # fmt: skip
def test_yuv_of_limited_range_has_black_at_16_and_white_at_235(y: int, u: int, v: int, rgb: tuple[int, int, int]) -> None:
    yuyv, uyvy, nv12 = (np.array(one, np.uint8) for one in ([y, u, y, v], [u, y, v, y], [y, y, y, y, u, v]))
    assert channels(yuyv, (2, 1), 4, "yuyv/limited")[0, 1].tolist() == pytest.approx(rgb, abs=1)
    assert np.array_equal(channels(yuyv, (2, 1), 4, "yuyv/limited"), channels(uyvy, (2, 1), 4, "uyvy/limited"))
    assert np.array_equal(channels(nv12, (2, 2), 2, "nv12/limited")[0], channels(yuyv, (2, 1), 4, "yuyv/limited")[0])


def test_yuv_integers_of_limited_range_are_the_rounded_real_numbers() -> None:
    memory = np.random.default_rng(1).integers(0, 256, 4 * 5000).astype(np.uint8)
    y = (memory[0::2].astype(float) - 16) * 255 / 219
    u, v = (memory[at::4].repeat(2) * 1.0 - 128 for at in (1, 3))
    exact = np.stack([y + 1.402 * 255 / 224 * v, y - (0.344136 * u + 0.714136 * v) * 255 / 224, y + 1.772 * 255 / 224 * u], 1)
    found = channels(memory, (10000, 1), 20000, "yuyv/limited")[0].astype(float)
    assert np.abs(found - np.clip(exact, 0, 255)).max() <= 0.503


@pytest.mark.parametrize("order", ["rggb", "bggr", "grbg", "gbrg"])
@pytest.mark.parametrize("corner", [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_a_flat_colour_survives_both_ways_out_of_bayer(order: str, corner: tuple[int, int]) -> None:
    colours = {"r": 200, "g": 90, "b": 30}
    plane = np.empty((8, 8), np.uint8)
    for place, letter in enumerate(order):
        plane[place // 2 :: 2, place % 2 :: 2] = colours[letter]
    box = (*corner, 6, 6)
    assert (channels(plane.ravel(), (8, 8), 8, f"bayer_{order}8", box) == [200, 90, 30]).all()
    assert (quads(plane.ravel(), (8, 8), 8, f"bayer_{order}8", box) == [200, 90, 30]).all()


def test_bayer_neighbours_beyond_the_roi_count() -> None:
    plane = np.random.default_rng(2).integers(0, 256, (12, 12)).astype(np.uint8)
    whole = channels(plane.ravel(), (12, 12), 12, "bayer_grbg8")
    assert np.array_equal(channels(plane.ravel(), (12, 12), 12, "bayer_grbg8", (3, 5, 6, 4)), whole[5:9, 3:9])


def test_bayer_bilinear_is_opencvs_inside() -> None:
    plane = np.random.default_rng(3).integers(0, 256, (30, 40)).astype(np.uint8)
    theirs = cv2.cvtColor(plane, cv2.COLOR_BayerRGGB2RGB)
    ours = channels(plane.ravel(), (40, 30), 40, "bayer_rggb8")
    assert np.abs(ours.astype(int) - theirs)[2:-2, 2:-2].max() <= 1


def test_white_balance_rounds_and_stops_at_the_top() -> None:
    image = np.array([[[100, 101, 200]]], np.uint8)
    assert balance(image, (1.5, 0.5, 2.0)).tolist() == [[[150, 51, 255]]]
    words = np.array([[[100, 60000, 65535]]], np.uint16)
    assert balance(words, (1.005, 1.5, 0.0)).tolist() == [[[101, 65535, 0]]]


def test_white_balance_is_in_whole_numbers() -> None:
    """A float of 0.7 lies below 0.7: 5 times it is no 3.5, and a GPU rounds no double for it."""
    image = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 256, 3)
    wanted = (image.astype(int) * [45875, 65536, 124256] + 32768) >> 16
    assert np.array_equal(balance(image, (0.7, 1.0, 1.896)), np.minimum(wanted, 255))


@pytest.mark.parametrize(
    ("pixel", "size", "pitch", "roi", "said"),
    [
        ("mono9", (4, 4), 4, None, "pixel format mono9 cannot be judged"),
        ("rgb8/limited", (4, 4), 12, None, "pixel format rgb8/limited cannot be judged"),
        ("mjpeg", (4, 4), 4, None, "pixel format mjpeg cannot be judged"),
        ("mono8", (4, 4), 4, (1, 0, 4, 4), "reaches beyond the frame's 4 x 4"),
        ("mono8", (4, 4), 4, (-1, 0, 2, 2), "reaches beyond"),
        ("mono8", (4, 5), 4, None, "the frame has 16 bytes; 4 x 5 of mono8 at 4 a row needs 20"),
        ("mono16", (4, 2), 4, None, "4 bytes a row cannot hold 4 pixels of mono16"),
        ("nv12", (3, 2), 4, None, "its sides are even"),
        ("nv12/limited", (2, 3), 4, None, "its sides are even"),
    ],
)
def test_what_does_not_fit_is_said_in_words(
    pixel: str, size: tuple[int, int], pitch: int, roi: pixels.Box | None, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        channels(np.zeros(16, np.uint8), size, pitch, pixel, roi)


def test_the_last_row_may_come_without_padding() -> None:
    assert channels(np.arange(7, dtype=np.uint8), (3, 2), 4, "mono8").tolist() == [[0, 1, 2], [4, 5, 6]]


# --- geometry ------------------------------------------------------------------------------------------


def test_halving_adds_two_and_leaves_out_an_odd_last_row_and_column() -> None:
    image = np.array([[1, 2, 9], [3, 4, 9], [9, 9, 9]], np.uint8)
    assert halve(image).tolist() == [[(1 + 2 + 3 + 4 + 2) >> 2]]


def test_opencvs_halving_is_ours_bit_for_bit() -> None:
    rng = np.random.default_rng(4)
    steps = CvSteps()
    for _ in range(150):
        rows, columns = rng.integers(2, 130, 2)
        kind, top = (np.uint8, 256) if rng.random() < 0.5 else (np.uint16, 65536)
        shape = (rows, columns, 3) if rng.random() < 0.5 else (rows, columns)
        image = rng.integers(0, top, shape).astype(kind)
        assert np.array_equal(steps.halve(image), halve(image))


def test_opencvs_luma_and_histogram_are_ours_bit_for_bit() -> None:
    rng = np.random.default_rng(5)
    steps = CvSteps()
    for kind, top in ((np.uint8, 256), (np.uint16, 65536)):
        image = rng.integers(0, top, (301, 77, 3)).astype(kind)
        grey = steps.luma(image)
        assert np.array_equal(grey, luma(image))
        assert np.array_equal(steps.histogram(grey), histogram(grey))


def test_bilinear_has_half_pixel_centres_and_repeats_edges() -> None:
    row = np.array([[0, 10, 20, 30]], np.float32)
    assert bilinear(row, (2, 1)).tolist() == [[5, 25]]
    assert bilinear(row, (8, 1))[0].tolist() == [0, 2.5, 7.5, 12.5, 17.5, 22.5, 27.5, 30]


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [(320, 320, (2, 0, 16, 16)), (400, 320, (0, 0, 20, 16)), (320, 160, (0, 3, 20, 10)), (10, 400, (9, 0, 1, 16))],
)
def test_letterbox_keeps_the_aspect_and_centres(width: int, height: int, box: pixels.Box) -> None:
    assert content_box(width, height, spec((20, 16), fit="letterbox")) == box


def test_letterbox_pads_with_114() -> None:
    wanted = spec((20, 16), fit="letterbox")
    made = prepare(np.full(32 * 32, 200, np.uint8), (32, 32), 32, "mono8", None, wanted).tensor[0]
    assert made[:, :2] == pytest.approx((114 / 255 - 0.5) / 0.25)
    assert made[:, 2:18] == pytest.approx((200 / 255 - 0.5) / 0.25)


def test_the_whole_chain_by_hand() -> None:
    """32 x 32 -> one halving -> 16 x 16, (v/255 - mean)/std."""
    wanted = spec((16, 16))
    image = np.random.default_rng(6).integers(0, 256, (32, 32)).astype(np.uint8)
    made = prepare(image.ravel(), (32, 32), 32, "mono8", None, wanted)
    assert made.tensor.shape == (1, 16, 16) and made.tensor.dtype == np.float32
    assert np.allclose(made.tensor[0], (halve(image) / 255 - 0.5) / 0.25, atol=1e-6)
    assert made.total == int(image.sum()) and made.histogram.tolist() == np.bincount(image.ravel(), minlength=256).tolist()
    assert made.laplacian_variance == pytest.approx(laplacian_variance(halve(image)))


def test_sharpness_and_histogram_of_words_are_on_the_scale_of_bytes() -> None:
    wanted = spec((16, 16))
    image = np.random.default_rng(7).integers(0, 256, (20, 20)).astype(np.uint8)
    words = image.astype(np.uint16) * 257
    eight = prepare(image.ravel(), (20, 20), 20, "mono8", None, wanted)
    sixteen = prepare(words.view(np.uint8).ravel(), (20, 20), 40, "mono16", None, wanted)
    assert np.array_equal(eight.histogram, sixteen.histogram)
    assert sixteen.total == 257 * eight.total
    assert sixteen.laplacian_variance == pytest.approx(eight.laplacian_variance)
    assert np.abs(sixteen.tensor - eight.tensor).max() < 1e-5


def test_a_mono_camera_serves_a_colour_network_and_a_colour_camera_a_mono_one() -> None:
    image = np.random.default_rng(8).integers(0, 256, (40, 40)).astype(np.uint8)
    three = prepare(image.ravel(), (40, 40), 40, "mono8", None, spec((16, 16), 3)).tensor
    alike = np.repeat(image[:, :, None], 3, 2)
    assert np.array_equal(three, prepare(alike.ravel(), (40, 40), 120, "rgb8", None, spec((16, 16), 3)).tensor)
    one = prepare(alike.ravel(), (40, 40), 120, "rgb8", None, spec((16, 16), 1)).tensor
    assert np.array_equal(one, prepare(image.ravel(), (40, 40), 40, "mono8", None, spec((16, 16), 1)).tensor)


# --- the fast path ---------------------------------------------------------------------------------------

SIZES = [(64, 48), (46, 34), (150, 98), (20, 16), (18, 12)]
ROIS = [None, (3, 1, 41, 33), (1, 3, 44, 31), (5, 2, 13, 9)]


@pytest.mark.parametrize("pixel", FORMATS)
@pytest.mark.parametrize(
    "target", [spec((20, 16), 1), spec((20, 16), 3), spec((17, 23), 3, "letterbox"), spec((8, 8), 1, "letterbox")]
)
def test_the_fast_path_gives_the_reference(pixel: str, target: InputSpec) -> None:
    """Every format, padded rows, sizes that halve not at all to thrice, ROIs at odd places; buffers are used again."""
    gains = (1.0, 1.0, 1.0) if pixel.startswith("mono") else (1.7, 1.0, 0.8)
    fast = FastPreprocess(target, gains)
    for seed, size in enumerate(SIZES):
        memory, pitch = camera_bytes(pixel, *size, padding=2 * seed, seed=seed)
        for roi in ROIS:
            if roi and (roi[0] + roi[2] > size[0] or roi[1] + roi[3] > size[1]):
                continue
            reference = prepare(memory, size, pitch, pixel, roi, target, gains)
            for made in (fast(memory, size, pitch, pixel, roi), prepare_cv2(memory, size, pitch, pixel, roi, target, gains)):
                assert np.abs(made.tensor - reference.tensor).max() <= 1e-5
                assert np.array_equal(made.histogram, reference.histogram)
                assert made.total == reference.total
                assert made.laplacian_variance == pytest.approx(reference.laplacian_variance, rel=1e-4)


def test_a_large_resize_stays_within_the_tolerance() -> None:
    rng = np.random.default_rng(9)
    for _ in range(30):
        width, height = (int(value) for value in rng.integers(30, 900, 2))
        target = spec((int(rng.integers(8, 400)), int(rng.integers(8, 400))))
        memory = rng.integers(0, 256, width * height).astype(np.uint8)
        apart = prepare_cv2(memory, (width, height), width, "mono8", None, target).tensor
        apart = apart - prepare(memory, (width, height), width, "mono8", None, target).tensor
        assert np.abs(apart).max() <= 1e-5


def test_the_tensor_lies_at_one_place_after_the_first_frame() -> None:
    fast = FastPreprocess(spec())
    memory, pitch = camera_bytes("mono8", 64, 48, 0, 1)
    first = fast(memory, (64, 48), pitch, "mono8", None).tensor
    assert fast(memory, (64, 48), pitch, "mono8", (4, 4, 40, 32)).tensor.ctypes.data == first.ctypes.data


def test_results_of_prepare_cv2_are_the_callers_to_keep() -> None:
    one = prepare_cv2(np.zeros(400, np.uint8), (20, 20), 20, "mono8", None, spec()).tensor
    prepare_cv2(np.full(400, 255, np.uint8), (20, 20), 20, "mono8", None, spec())
    assert one.max() == pytest.approx(-2)


# --- mjpeg -----------------------------------------------------------------------------------------------


def jpeg(image: npt.NDArray[np.uint8], **options: int) -> bytes:
    ok, raw = cv2.imencode(".jpg", image, [value for pair in options.items() for value in (getattr(cv2, pair[0]), pair[1])])
    assert ok
    return raw.tobytes()


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("channels", [1, 3])
def test_mjpeg_is_its_decoded_picture(channels: int, progressive: int) -> None:
    shape = (48, 64) if channels == 1 else (48, 64, 3)
    raw = jpeg(np.random.default_rng(10).integers(0, 256, shape).astype(np.uint8), IMWRITE_JPEG_PROGRESSIVE=progressive)
    decoded = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_ANYCOLOR)
    memory = np.frombuffer(raw + b"\0" * 500, np.uint8)  # a driver's buffer is longer than the picture
    made = prepare_cv2(memory, (64, 48), 0, "mjpeg", (1, 3, 40, 32), spec((20, 16), 3))
    plain = "mono8" if channels == 1 else "bgr8"
    wanted = prepare(decoded.ravel(), (64, 48), 64 * channels, plain, (1, 3, 40, 32), spec((20, 16), 3))
    assert np.abs(made.tensor - wanted.tensor).max() <= 1e-5


@pytest.mark.parametrize("progressive", [0, 1])
@pytest.mark.parametrize("kept", [0.98, 0.6, 0.3])
def test_a_cut_mjpeg_is_refused(progressive: int, kept: float) -> None:
    raw = jpeg(np.random.default_rng(11).integers(0, 256, (48, 64)).astype(np.uint8), IMWRITE_JPEG_PROGRESSIVE=progressive)
    memory = np.frombuffer(raw[: int(len(raw) * kept)], np.uint8)
    with pytest.raises(ValueError, match="ends before its end mark"):
        prepare_cv2(memory, (64, 48), 0, "mjpeg", None, spec())


def test_mjpeg_of_another_size_or_no_jpeg_is_refused() -> None:
    raw = np.frombuffer(jpeg(np.zeros((48, 64), np.uint8)), np.uint8)
    with pytest.raises(ValueError, match="has 64 x 48 pixels, not 32 x 48"):
        prepare_cv2(raw, (32, 48), 0, "mjpeg", None, spec())
    with pytest.raises(ValueError, match="not a JPEG"):
        prepare_cv2(np.zeros(100, np.uint8), (32, 48), 0, "mjpeg", None, spec())


@pytest.mark.parametrize("pixel", ["mono8", "rgb8", "bgr8", "mono12", "yuyv"])
@pytest.mark.parametrize("roi", [None, (0, 0, 31, 40), (13, 7, 51, 33)])
@pytest.mark.parametrize("target", [spec(), spec((20, 16), 3)])
def test_frames_that_lie_as_the_one_before_are_read_as_exactly(pixel: str, roi: pixels.Box | None, target: InputSpec) -> None:
    fast = FastPreprocess(target)
    for seed in range(3):
        memory, pitch = camera_bytes(pixel, 64, 40, 5, seed)
        found, wanted = (one(memory, (64, 40), pitch, pixel, roi) for one in (fast, lambda *given: prepare(*given, target)))
        assert np.abs(found.tensor - wanted.tensor).max() < 1e-5
        assert np.array_equal(found.histogram, wanted.histogram) and found.total == wanted.total
    with pytest.raises(ValueError, match="needs"):
        fast(memory[:-200], (64, 40), pitch, pixel, roi)
    with pytest.raises(ValueError, match="reaches beyond"):
        fast(memory, (64, 40), pitch, pixel, (13, 7, 52, 33))
