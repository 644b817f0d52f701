"""The report: whole for any subset of a run, self-contained, deaf to hostile names; charts never break."""

import base64
import copy
import dataclasses
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import charts
from tdsm_jax.evaluation.report import METRICS, Report, render, write_report

NAN, INF = float("nan"), float("inf")
SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "img", "br", "hr", "link", "input"}


class _Balance(html.parser.HTMLParser):
    """Fails at the first tag closed out of order and remembers every tag and all text."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def _method(fidelity: float, K: int) -> dict:
    scalars = {key: fidelity for key in METRICS}
    per_class = {f"{key}_per_class": [fidelity] * K for key in ("label_fidelity", "cas", "cw_fd")}
    return scalars | per_class | {"confusion": np.eye(K, dtype=int).tolist()}


def _report(K: int = 3, size: int = 8, channels: int = 1, columns: int = 4) -> Report:
    random = np.random.default_rng(0)
    methods = {"clean": _method(0.9, K), "tdsm": _method(0.8, K), "dsm": _method(0.5, K)}
    methods["tdsm"]["recovery"] = {"label_fidelity": 0.75}
    grid = random.integers(0, 256, (K, columns, size, size, channels), dtype=np.uint8)
    return Report(
        title="Three digits",
        config={"label_noise": {"kind": "sym", "rate": 0.4}, "score": {"optimizer": {"lr": 0.00123}}},
        environment={"command": "tdsm --workdir=runs/a"},
        metrics={
            "methods": methods,
            "real": {"label_fidelity": 0.97},
            "seconds": {"classifier": 60.0, "score": 7200.0},
            "versions": {"jax": "0.10.2"},
            "config_hash": "c0ffee",
            "transition": {"relative_l1": 0.03, "condition_number": 1.8, "estimator": "DualT"},
        },
        images={"dsm": grid, "real": grid, "tdsm": grid},
        transitions={"true": np.eye(K), "estimated": np.eye(K)},
        curves={
            "score/dsm": [{"step": s, "loss": 1 / s} for s in range(1, 9)],
            "classifier/fold0": [{"step": 1, "loss": 2.0, "held_out_nll": 2.2}],
        },
        classifier={
            "sigma": [0.01, 1.0, 80.0],
            "accuracy": [0.9, 0.5, 0.1],
            "noisy_accuracy": [0.6, 0.4, 0.1],
            "own_weight": [0.6, 0.61, 0.59],
            "noisy_nll": [1.0, 2.0, 2.3],
            "expected_own_weight": 0.6,
        },
        class_names=tuple(f"class {k}" for k in range(K)),
    )


def _empty() -> Report:
    return Report("Nothing yet", {}, {}, {}, {}, {}, {}, {}, ())


def _check_page(page: str) -> _Balance:
    parsed = _Balance(page)
    assert not re.search(r"https?:", page.replace('xmlns="http://www.w3.org/2000/svg"', ""))
    assert "script" not in parsed.tags and "link" not in parsed.tags and "url(" not in page
    assert len(page) < 5_000_000
    return parsed


def test_everything_is_on_the_page():
    page = render(_report())
    text = _check_page(page).text
    for said in (
        *("Three digits", "3 classes", "40 % symmetric label noise", "50.0 %", "80.0 %", "90.0 %"),
        *("won back 75 %", "97.0 %", "75 % back", "class 2", "DualT", "0.00123", "score.optimizer.lr"),
        *("c0ffee", "2.0 h", "60 s", "0.10.2", "runs/a", "expected (share of right labels)", "fold0"),
    ):
        assert said in text, said
    sections = re.findall(r"<h2>(.+?)</h2>", page)[1:]
    assert sections == re.findall(r'<a href="#.+?">(.+?)</a>', page) and len(sections) == 9
    assert "Not evaluated" not in text and "Nothing recorded" not in text
    assert page.index("Real images, one") < page.index("DSM, one") < page.index("TDSM, one")


def test_metric_table_orders_methods_marks_the_best_and_skips_the_ceiling():
    report = _report()
    report.metrics["methods"]["s_weighted"] = {"label_fidelity": 0.7, "fd": 0.1, "cw_fd": None}
    report.metrics["methods"]["tdsm"]["cas"] = 0.9
    table = re.search(r"<table>.*?</table>", render(report)).group()
    head = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<th scope=\"col\">.*?</th>", table)]
    assert head == ["Metric", "DSM", "TDSM", "Clean", "S-weighted", "Real vs real"]
    rows = {re.sub("<.*?>", "", row[0]): re.findall("<td>(.*?)</td>", row[1])
            for row in re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)}  # fmt: skip
    assert rows["Label fidelity, % ↑"] == [
        *("50.0", "<b>80.0</b><small>75 % back</small>", "90.0", "70.0", "97.0")
    ]
    assert rows["CAS, % ↑"][1:3] == ["<b>90.0</b>", "90.0"]
    assert rows["FD ↓"] == ["0.50", "0.80", "0.90", "<b>0.10</b>", "–"]


@pytest.mark.parametrize("kept", ["dsm", "tdsm", "clean"])
def test_a_run_of_one_method_says_what_is_missing(kept):
    report = _report()
    del report.metrics["methods"]["tdsm"]["recovery"]
    report.metrics["methods"] = {kept: report.metrics["methods"][kept]}
    text = _check_page(render(report)).text
    absent = [label for name, label in (("dsm", "DSM"), ("tdsm", "TDSM"), ("clean", "Clean")) if name != kept]
    assert f"Not evaluated in this run: {', '.join(absent)}." in text
    assert "Recovery needs both DSM and Clean" in text and "won back 75 %" not in text


def test_an_empty_run_renders_and_says_so():
    text = _check_page(render(_empty())).text
    assert "Nothing recorded for: samples, metrics, class by class" in text


@pytest.mark.parametrize("part", [f.name for f in dataclasses.fields(Report) if f.name != "title"][:-1])
def test_any_part_may_be_empty(part):
    _check_page(render(dataclasses.replace(_report(), **{part: {}})))


def test_non_finite_numbers_become_dashes_not_text():
    def spoil(value):
        if isinstance(value, dict):
            return {key: spoil(v) for key, v in value.items()}
        if isinstance(value, list):
            return [spoil(v) for v in value]
        return NAN if isinstance(value, float) else value

    report = _report()
    spoilt = {part: spoil(getattr(report, part)) for part in ("metrics", "curves", "classifier")}
    page = render(dataclasses.replace(report, transitions={"true": np.full((3, 3), NAN)}, **spoilt))
    assert "–" in _check_page(page).text
    assert not re.search(r"\b(nan|inf)\b", page, re.IGNORECASE)


def test_negative_recovery_is_not_sold_as_a_gain():
    report = _report()
    report.metrics["methods"]["tdsm"]["recovery"]["label_fidelity"] = -0.2
    text = render(report)
    assert "TDSM did worse than DSM" in text and "won back <b>" not in text and "width:0.0%" in text


def test_hostile_names_stay_text():
    evil = "</span><script>alert(\"x\")</script><img src=x onerror='y'>&amp;\x00"
    report = _report()
    metrics = copy.deepcopy(report.metrics)
    metrics["methods"][evil] = metrics["methods"]["dsm"]
    metrics["transition"]["estimator"] = metrics["seconds"][evil] = evil
    metrics["seconds"][evil], metrics["versions"] = 1.0, {evil: evil}
    hostile = Report(
        title=evil,
        config={"label_noise": {"kind": evil, "rate": 0.1}, evil: {evil: evil}},
        environment={evil: evil},
        metrics=metrics,
        images={evil: report.images["real"]},
        transitions=report.transitions,
        curves={f"score/{evil}": report.curves["score/dsm"], f"classifier/{evil}": []},
        classifier=report.classifier,
        class_names=(evil, evil, evil),
    )
    page = render(hostile)
    parsed = _check_page(page)
    assert parsed.tags.count("img") == 1 and "<script" not in page and "\x00" not in page
    assert 'alert("x")' in parsed.text


def test_a_hundred_classes_of_large_images_stay_small():
    report = _report(K=100, size=128, channels=3, columns=8)
    confusion = np.random.default_rng(1).integers(0, 9, (100, 100)).tolist()
    for method in report.metrics["methods"].values():
        method["confusion"] = confusion
    report.curves["score/dsm"][:] = [{"step": s, "loss": 1 / s} for s in range(1, 20_000)]
    page = render(report)
    assert "Shown: 10 of 100 classes" in _check_page(page).text and len(page) < 3_700_000
    assert max(path.count("L") for path in re.findall(r' d="(.*?)"', page)) < 100


def test_sample_grid_pixels_arrive_unchanged():
    report = _report(K=2, size=64, columns=2)
    data = re.search(r'data:image/png;base64,([^"]+)"', render(report)).group(1)
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(pixels[:64, :64], report.images["real"][0, 0, :, :, 0])
    np.testing.assert_array_equal(pixels[-64:, -64:], report.images["real"][1, 1, :, :, 0])


def test_write_report_writes_the_page(tmp_path):
    write_report(tmp_path / "run" / "report.html", _report())
    assert (tmp_path / "run" / "report.html").read_text() == render(_report())


def _svg(text: str) -> ElementTree.Element:
    root = ElementTree.fromstring(text)
    assert root.get("role") == "img" and root.get("aria-label") and root.get("viewBox")
    assert "nan" not in text and "inf" not in text
    return root


def _styles(svg: ElementTree.Element, wanted: str) -> list[str]:
    return [e.get("style") for e in svg.iter() if wanted in (e.get("style") or "")]


def test_lines_differ_without_colour_and_marks_tell_their_values():
    svg = _svg(charts.line_chart({n: ([1, 2], [3, 5]) for n in "abc"}, x_label="step", y_label="loss, nats"))
    dashes = {re.search("stroke-dasharray:([^;]+)", style).group(1) for style in _styles(svg, "dasharray")}
    shapes = {path.get("d") for path in svg.iter(f"{SVG}path") if path.get("transform")}
    assert len(dashes) == len(shapes) == 3
    assert [t.text for t in svg.iter(f"{SVG}title") if t.text][:2] == ["a: 1, 3", "a: 2, 5"]
    assert {"step", "loss, nats", "a", "b", "c"} <= {t.text for t in svg.iter(f"{SVG}text")}


def test_line_chart_places_points_on_a_log_axis():
    text = charts.line_chart({"a": ([1, 10, 100], [0, 1, 2])}, x_label="x", y_label="y", log_x=True)
    path = [p.get("d") for p in _svg(text).iter(f"{SVG}path") if p.get("d").count("L") == 2][0]
    points = np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", path), float)
    np.testing.assert_allclose(np.diff(points, n=2, axis=0), 0, atol=0.11)
    assert points[0, 0] < points[2, 0] and points[0, 1] > points[2, 1]


def test_line_chart_skips_what_cannot_be_drawn_and_keeps_one_point_series():
    series = {
        "gap": ([1, 2, NAN, 4], [1, INF, 3, 4]),
        "one": ([3], [2]),
        "none": ([], []),
        "low": ([0, -1], [1, 1]),
    }
    svg = _svg(charts.line_chart(series, x_label="x", y_label="y", log_x=True, references={"r": 9, "n": NAN}))
    values = [t.text for t in svg.iter(f"{SVG}title") if t.text]
    assert values == ["gap: 1, 1", "gap: 4, 4", "one: 3, 2"]
    labels = {t.text for t in svg.iter(f"{SVG}text")}
    assert "r" in labels and "n" not in labels
    assert "nothing recorded" in charts.line_chart({}, x_label="x", y_label="y")


@settings(deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.text(max_size=9), st.lists(st.tuples(st.floats(), st.floats()), max_size=9), max_size=3
    ),
    st.booleans(),
    st.booleans(),
)
def test_no_numbers_break_a_chart(series, log_x, log_y):
    curves = {name: ([x for x, _ in points], [y for _, y in points]) for name, points in series.items()}
    svg = ElementTree.fromstring(
        charts.line_chart(curves, x_label="x", y_label="y", log_x=log_x, log_y=log_y)
    )
    height = float(svg.get("viewBox").split()[3])
    for x, y in re.findall(
        r"translate\(([-\d.e]+) ([-\d.e]+)\)", ElementTree.tostring(svg, encoding="unicode")
    ):
        assert 0 <= float(x) <= charts.WIDTH and 0 <= float(y) <= height
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
    small = _svg(
        charts.heat_map(np.diag([97.25, 4.44]), row_label="r", column_label="c", names=("cat", "dog"))
    )
    texts = [t.text for t in small.iter(f"{SVG}text")]
    assert {"97", "4.4", "0", "cat", "dog", "↓ r", "→ c"} <= set(texts)
    assert "cat → cat: 97.2" in [t.text for t in small.iter(f"{SVG}title")]
    large = charts.heat_map(np.eye(100), row_label="r", column_label="c", names=[str(k) for k in range(100)])
    runs = [p for p in _svg(large).iter(f"{SVG}path") if p.get("shape-rendering")]
    assert (
        len(runs) == 1
        and runs[0].get("d").startswith("M0 0h1v1h-1zM1 1h1")
        and runs[0].get("d").count("M") == 100
    )
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
    grid = np.asarray(Image.open(io.BytesIO(charts.image_grid_png(images, scale=2)))).reshape(
        17, 32, channels
    )
    for row, column in np.ndindex(2, 3):
        tile = grid[row * 9 : row * 9 + 8, column * 11 : column * 11 + 10]
        np.testing.assert_array_equal(tile, np.kron(images[row, column], np.ones((2, 2, 1), np.uint8)))
    assert (grid[8] == 128).all() and (grid[:, 10] == 128).all()


@pytest.mark.parametrize("shape", [(2, 2, 4, 4, 2), (2, 4, 4, 1), (0, 2, 4, 4, 1)])
def test_image_grid_refuses_what_is_not_images(shape):
    with pytest.raises(UserError, match="pass non-empty uint8"):
        charts.image_grid_png(np.zeros(shape, np.uint8))
    with pytest.raises(UserError, match="pass non-empty uint8"):
        charts.image_grid_png(np.zeros((2, 2, 4, 4, 3), np.float32))


def test_numbers_are_printed_as_people_read_them():
    values = 0, 0.0312, 60.0, 123.4, 2000, 20_000, 2.5e6, NAN, -INF
    assert [charts.short_number(v) for v in values] == "0 0.0312 60 123 2000 20k 2.5M – –".split()
