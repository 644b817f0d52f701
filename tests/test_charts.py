"""Charts never break on odd numbers, tell their values, and differ without colour; grids keep every pixel."""

import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts, grids, svg

NAN, INF = float("nan"), float("inf")
SVG = "{http://www.w3.org/2000/svg}"


def _svg(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label") and root.get("viewBox")
    assert "nan" not in text and "inf" not in text
    return root


def _styles(drawing: ElementTree.Element, wanted: str) -> list[str]:
    return [e.get("style") for e in drawing.iter() if wanted in (e.get("style") or "")]


def test_lines_differ_without_colour_and_marks_tell_their_values():
    drawing = _svg(charts.line_chart({n: ([1, 2], [3, 5]) for n in "abc"}, x_label="step", y_label="loss, nats"))
    dashes = {re.search("stroke-dasharray:([^;]+)", style).group(1) for style in _styles(drawing, "dasharray")}
    shapes = {path.get("d") for path in drawing.iter(f"{SVG}path") if path.get("transform")}
    assert len(dashes) == len(shapes) == 3
    assert [t.text for t in drawing.iter(f"{SVG}title") if t.text][:2] == ["a: 1, 3", "a: 2, 5"]
    assert {"step", "loss, nats", "a", "b", "c"} <= {t.text for t in drawing.iter(f"{SVG}text")}


def test_styles_choose_colour_dash_and_marker_of_lines_and_dots():
    lines = charts.line_chart({"a": ([1, 2], [3, 5])}, x_label="x", y_label="y", styles=[2])
    dots = charts.dot_plot({"a": [1, 2]}, names=("cat", "dog"), x_label="x", styles=[2])
    for text in (lines, dots):
        assert set(re.findall(r"var\(--series-(\d)", text)) == {"2"}
        assert svg.marker(2, 0, 0).split('"')[1] in text and svg.marker(0, 0, 0).split('"')[1] not in text


def test_an_axis_takes_in_what_it_is_told_to():
    def ticks(**options):
        text = charts.line_chart({"a": ([1, 2], [60, 61])}, x_label="x", y_label="y", **options)
        return {t.text for t in _svg(text).iter(f"{SVG}text")}

    assert {"0", "50", "100"} <= ticks(y_takes_in=(0, 100)) and not {"0", "100"} & ticks()


def test_neighbouring_ticks_are_told_apart():
    assert charts._tick_labels([2.285, 2.2875, 2.29]) == ["2.285", "2.2875", "2.29"]
    assert charts._tick_labels([0, 25_000, 50_000]) == ["0", "25k", "50k"]
    assert charts._tick_labels([0.01, 0.1, 1, 10]) == ["0.01", "0.1", "1", "10"]
    assert charts._tick_labels([]) == []


def test_line_chart_places_points_on_a_log_axis():
    text = charts.line_chart({"a": ([1, 10, 100], [0, 1, 2])}, x_label="x", y_label="y", log_x=True)
    path = [p.get("d") for p in _svg(text).iter(f"{SVG}path") if p.get("d").count("L") == 2][0]
    points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)
    np.testing.assert_allclose(np.diff(points, n=2, axis=0), 0, atol=0.11)
    assert points[0, 0] < points[2, 0] and points[0, 1] > points[2, 1]


def test_drawings_are_tiled_without_overlap():
    one = charts.line_chart({"a": ([1, 2], [3, 5])}, x_label="x", y_label="y")
    high = charts.dot_plot({"a": range(30)}, names=list("abcdefghijklmnopqrstuvwxyz0123"), x_label="x")
    sheet = ElementTree.fromstring(svg.tiled([[one, high], [one]]))
    boxes = [[float(e.get(name)) for name in ("x", "y", "width", "height")] for e in sheet]
    heights = [float(ElementTree.fromstring(d).get("viewBox").split()[3]) for d in (one, high)]
    assert boxes == [
        [0, 0, 360, heights[0]],
        [360, 0, 360, heights[1]],
        [0, max(heights), 360, heights[0]],
    ]
    assert sheet.get("viewBox") == f"0 0 720 {max(heights) + heights[0]:.0f}"


def test_line_chart_skips_what_cannot_be_drawn_and_keeps_one_point_series():
    series = {
        "gap": ([1, 2, NAN, 4], [1, INF, 3, 4]),
        "one": ([3], [2]),
        "none": ([], []),
        "low": ([0, -1], [1, 1]),
    }
    drawing = _svg(charts.line_chart(series, x_label="x", y_label="y", log_x=True, references={"r": 9, "n": NAN}))
    values = [t.text for t in drawing.iter(f"{SVG}title") if t.text]
    assert values == ["gap: 1, 1", "gap: 4, 4", "one: 3, 2"]
    labels = {t.text for t in drawing.iter(f"{SVG}text")}
    assert "r" in labels and "n" not in labels
    assert "nothing recorded" in charts.line_chart({}, x_label="x", y_label="y")


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(st.text(max_size=9), st.lists(st.tuples(st.floats(), st.floats()), max_size=9), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_no_numbers_break_a_chart(series, log_x, log_y):
    curves = {name: ([x for x, _ in points], [y for _, y in points]) for name, points in series.items()}
    drawing = ElementTree.fromstring(charts.line_chart(curves, x_label="x", y_label="y", log_x=log_x, log_y=log_y))
    height = float(drawing.get("viewBox").split()[3])
    for x, y in re.findall(r"translate\(([-\d.e]+) ([-\d.e]+)\)", ElementTree.tostring(drawing, encoding="unicode")):
        assert 0 <= float(x) <= svg.WIDTH and 0 <= float(y) <= height
    values = {name: (ys + [NAN] * 9)[:9] for name, (_, ys) in curves.items()}
    ElementTree.fromstring(charts.dot_plot(values, names=list("abcdefghi"), x_label="x"))
    matrix = np.array([*values.values(), *[[NAN] * 9] * 9])[:9]
    ElementTree.fromstring(charts.heat_map(matrix, row_label="r", column_label="c", names=list("abcdefghi")))


@given(st.floats(-1e3, 1e3), st.floats(1e-2, 1e6))
def test_ticks_are_round_few_and_inside(low, span):
    ticks = charts._nice_ticks(low, low + span)
    steps = np.diff(ticks)
    assert 2 <= len(ticks) <= 7 and np.allclose(steps, steps[0], rtol=1e-3)
    assert low - 1e-6 * span <= ticks[0] and ticks[-1] <= low + span + 1e-6 * span


def test_log_ticks_fall_on_decades():
    np.testing.assert_allclose(charts._log_ticks(0.002, 80), [0.01, 0.1, 1, 10])
    assert len(charts._log_ticks(0.2, 0.5)) >= 2


def test_heat_map_prints_small_matrices_and_shades_large_ones():
    small = _svg(charts.heat_map(np.diag([97.25, 4.44]), row_label="r", column_label="c", names=("cat", "dog")))
    texts = [t.text for t in small.iter(f"{SVG}text")]
    assert {"97", "4.4", "0", "cat", "dog", "↓ r", "→ c"} <= set(texts)
    assert "cat → cat: 97.2" in [t.text for t in small.iter(f"{SVG}title")]
    large = charts.heat_map(np.eye(100), row_label="r", column_label="c", names=[str(k) for k in range(100)])
    runs = [p for p in _svg(large).iter(f"{SVG}path") if p.get("shape-rendering")]
    assert len(runs) == 1 and runs[0].get("d").startswith("M0 0h1v1h-1zM1 1h1") and runs[0].get("d").count("M") == 100
    with pytest.raises(UserError, match=r"\[2, 2\]"):
        charts.heat_map(np.eye(3), row_label="r", column_label="c", names=("a", "b"))


def test_dot_plot_has_a_mark_for_every_finite_value():
    text = charts.dot_plot({"a": [1, NAN], "b": [2, 3]}, names=("cat", "dog"), x_label="x")
    assert [t.text for t in _svg(text).iter(f"{SVG}title") if t.text] == [
        "cat, a: 1",
        "cat, b: 2",
        "dog, b: 3",
    ]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_repeats_pixels_and_leaves_gaps(channels):
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, channels), dtype=np.uint8)
    grid = np.asarray(Image.open(io.BytesIO(grids.image_grid_png(images, scale=2)))).reshape(17, 32, channels)
    for row, column in np.ndindex(2, 3):
        tile = grid[row * 9 : row * 9 + 8, column * 11 : column * 11 + 10]
        np.testing.assert_array_equal(tile, np.kron(images[row, column], np.ones((2, 2, 1), np.uint8)))
    assert (grid[8] == 128).all() and (grid[:, 10] == 128).all()


@pytest.mark.parametrize("shape", [(2, 2, 4, 4, 2), (2, 4, 4, 1), (0, 2, 4, 4, 1)])
def test_image_grid_refuses_what_is_not_images(shape):
    with pytest.raises(UserError, match="pass non-empty uint8"):
        grids.image_grid_png(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="pass non-empty uint8"):
        grids.image_grid_png(np.zeros((2, 2, 4, 4, 3), np.float32))


def test_numbers_are_printed_as_people_read_them():
    values = 0, 0.0312, 60.0, 123.4, 2000, 20_000, 2.5e6, NAN, -INF
    assert [svg.short_number(v) for v in values] == "0 0.0312 60 123 2000 20k 2.5M – –".split()
