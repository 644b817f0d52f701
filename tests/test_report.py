"""The report: whole for any subset of a run, self-contained, deaf to hostile names, fair about what it shows."""

import base64
import copy
import dataclasses
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from tdsm_jax.evaluation import grids, page, svg
from tdsm_jax.evaluation.report import Report, render, write_report
from tdsm_jax.evaluation.report_words import METHODS, METRICS, style_index

NAN = float("nan")
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
            "own_weight_uncalibrated": [0.7, 0.72, 0.66],
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


def _rows(report: Report) -> dict[str, list[str]]:
    """The cells of the metric table by the text of their row's head."""
    table = re.search(r"<table>.*?</table>", render(report)).group()
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', table)
    return {re.sub("<.*?>", "", name): re.findall("<td>(.*?)</td>", cells) for name, cells in rows}


def test_metric_table_orders_methods_marks_the_best_and_skips_the_ceiling():
    report = _report()
    report.metrics["methods"]["s_weighted"] = {"label_fidelity": 0.7, "fd": 0.1, "cw_fd": None}
    report.metrics["methods"]["tdsm"]["cas"] = 0.9
    table = re.search(r"<table>.*?</table>", render(report)).group()
    head = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<th scope=\"col\">.*?</th>", table)]
    assert head == ["Metric", "DSM", "TDSM", "Clean", "S-weighted", "Real vs real"]
    rows = _rows(report)
    assert rows["Label fidelity, % ↑"] == [*("50.0", "<b>80.0</b><small>75 % back</small>", "90.0", "70.0", "97.0")]
    assert rows["CAS, % ↑"][1:3] == ["<b>90.0</b>", "90.0"]
    assert rows["FD ↓"] == ["0.50", "0.80", "0.90", "<b>0.10</b>", "–"]


def test_fewer_real_images_than_samples_are_said():
    report = _report()
    for test, said in ((1000, True), (5000, False)):
        report.metrics["counts"] = {"samples": 5000, "compared_with": 5000, "test": test}
        text = _check_page(render(report)).text
        assert "real test images in place of samples" in text
        assert ("fewer than samples (1000 and 5000): of fewer images distances are larger" in text) == said


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


def test_where_there_was_no_damage_recovery_is_a_dash():
    report = _report()
    methods = report.metrics["methods"]
    methods["tdsm"]["recovery"] = {"label_fidelity": 0.75, "cas": None, "fd": 2.3, "density": 0.5}
    methods["dsm"]["fd"] = 0.5  # clean labels made it worse, 0.9: noise did no damage
    methods["dsm"]["density"], methods["clean"]["density"] = 0.9001, 0.9002  # equal in print
    rows = _rows(report)
    assert rows["Label fidelity, % ↑"][1].endswith("<small>75 % back</small>")
    for name in ("CAS, % ↑", "FD ↓", "Density ↑"):
        assert rows[name][1].endswith("<small>–</small>"), name
    assert "small" not in rows["Coverage, % ↑"][1]  # never computed


def test_without_damage_the_headline_claims_no_recovery():
    report = _report()
    assert "nothing to win back" not in render(report)
    report.metrics["methods"]["dsm"]["label_fidelity"] = 0.95
    page = render(report)
    assert "won back <b>" not in page and "worse than DSM" not in page and "nothing to win back" in page


def test_what_prints_the_same_is_not_called_the_best_and_small_values_keep_two_digits():
    report = _report()
    report.metrics["methods"]["dsm"]["fd"], report.metrics["methods"]["tdsm"]["fd"] = 0.4652, 0.4651
    report.metrics["real"]["fd"] = 0.00328
    assert _rows(report)["FD ↓"] == ["0.47", "0.47", "0.90", "0.0033"]


@pytest.mark.parametrize("present", [("clean",), ("tdsm", "clean"), ("dsm", "tdsm", "clean")])
def test_a_method_keeps_its_colour_whichever_others_are_there(present):
    report = _report()
    methods = {m: report.metrics["methods"][m] for m in present}
    curves = {f"score/{m}": report.curves["score/dsm"] for m in present}
    page = render(dataclasses.replace(report, metrics={"methods": methods}, curves=curves, classifier={}))
    used = {int(index) for index in re.findall(r"var\(--series-(\d)", page)}
    assert used == {list(METHODS).index(m) for m in present}


def test_the_classifier_section_says_that_it_is_measured_out_of_fold():
    assert "the classifier that never saw it" in _check_page(render(_report())).text


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


def test_tables_of_plain_text_name_their_rows():
    made = page.table(["a", "<b>"], [["x&y", "<1>"], ["z", "*2*"]], lambda text: text.strip("*"))
    assert made.count("<tr>") == 3 and '<th scope="col">&lt;b&gt;</th>' in made
    assert '<th scope="row">x&amp;y</th><td><1></td>' in made and '<th scope="row">z</th><td>2</td>' in made
    assert "<td>&lt;1&gt;</td>" in page.table(["a", "b"], [["x", "<1>"]])


def test_grids_of_other_numbers_of_classes_show_those_that_all_have():
    few, many = (np.zeros((K, columns, 8, 8, 1), np.uint8) for K, columns in ((3, 4), (10, 2)))
    shown = [grids.Grid("few", "of three", few), grids.Grid("many", "", many)]
    made = grids.side_by_side(shown, [f"class {k}" for k in range(10)])
    assert "Shown: 3 of 10 classes" in made and made.count("<span>class 2</span>") == 2 and "class 3" not in made
    assert "<b>few</b> of three" in made and made.count("<img") == 2


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


def test_no_two_methods_look_alike():
    drawn = {(svg.marker(style_index(m), 0, 0), svg.series_colour(style_index(m))) for m in METHODS}
    strokes = {svg.stroke(style_index(m)) for m in METHODS}
    assert len(drawn) == len(strokes) == len(METHODS)
