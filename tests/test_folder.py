"""One's own images: folders and zips of class folders, .npz arrays, labels as given whose true ones nobody knows."""

import io
import json
import os
import pathlib
import struct
import subprocess
import sys
import zipfile
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image, ImageOps

from class_folders import class_folders, picture
from tdsm_jax import checks, judge_stages
from tdsm_jax import config as configuration
from tdsm_jax.data import folder, label_files, pictures, sources
from tdsm_jax.data.pictures import Form
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import statistics
from tdsm_jax.labels.estimators import estimate
from tdsm_jax.labels.evidence import Evidence
from tdsm_jax.run import Run
from tdsm_jax.validation import validate

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = configuration.load_module(ROOT / "configs" / "folder.py")


def encoded(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def load(path, **fields):
    return sources.load(DataSpec("folder", path=str(path), **{"image_size": 8} | fields))


def test_classes_are_folders_in_sorted_order_whatever_lies_deeper(tmp_path):
    root = tmp_path / "photos"
    class_folders(root, ("bee", "ant"), count=4)
    (root / "ant" / "2019" / "may").mkdir(parents=True)
    picture(7).save(root / "ant" / "2019" / "may" / "x.jpg", quality=95)
    picture(8).save(root / "bee" / "y.webp", lossless=True)
    picture(9).save(root / "bee" / "z.BMP", "BMP")
    (root / "ant" / ".hidden.png").write_bytes(b"")
    (root / ".cache").mkdir()
    (root / ".cache" / "notes.txt").write_text("")
    found = folder.find(root, Form(8, 3))
    assert found.class_names == ("ant", "bee")
    assert found.labels.tolist() == [0] * 5 + [1] * 6
    names = found.images.names
    assert [name.partition("/")[0] for name in names] == ["ant"] * 5 + ["bee"] * 6
    for index in (0, 4, 10):
        content = (root / names[index]).read_bytes()
        np.testing.assert_array_equal(found.images.read(index), pictures.decode(content, Form(8, 3)))
    assert all(found.images.read(index).shape == (8, 8, 3) for index in range(11))
    train, test = load(root, test_fraction=0.4)
    assert train.name == "photos" and len(train.labels) + len(test.labels) == 11
    assert test.labels.tolist() == [0, 0, 1, 1] and train.clean
    for part in (train, test):
        for name, image in zip(part.files, part.images, strict=True):
            np.testing.assert_array_equal(image, pictures.decode((root / name).read_bytes(), Form(8, 3)), name)


def test_a_zip_holds_what_its_folder_holds(tmp_path):
    root = class_folders(tmp_path / "photos")
    for name, prefix in (("flat", ""), ("wrapped", "photos/")):
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("__MACOSX/._junk", b"junk")
            for path in sorted((tmp_path / "photos").rglob("*.png"), reverse=True):
                archive.write(path, prefix + path.relative_to(root).as_posix())
    whole = load(root)
    for name in ("flat", "wrapped"):
        again = load(tmp_path / f"{name}.zip")
        for part, other in zip(whole, again, strict=True):
            np.testing.assert_array_equal(part.images, other.images)
            np.testing.assert_array_equal(part.labels, other.labels)


def test_a_class_may_be_a_link_to_a_folder_but_not_to_one_above(tmp_path):
    class_folders(tmp_path / "elsewhere", ("ant", "bee"))
    root = tmp_path / "photos"
    root.mkdir()
    (root / "ant").symlink_to(tmp_path / "elsewhere" / "ant", target_is_directory=True)
    (root / "bee").symlink_to(tmp_path / "elsewhere" / "bee", target_is_directory=True)
    (root / "cow").symlink_to(tmp_path / "elsewhere" / "bee", target_is_directory=True)  # twice is no loop
    assert folder.find(root, Form(8, 3)).class_names == ("ant", "bee", "cow")
    (tmp_path / "elsewhere" / "bee" / "back").symlink_to(root, target_is_directory=True)
    with pytest.raises(UserError, match=r"bee/back: a link to .*photos, which it lies in itself; remove") as error:
        folder.find(root, Form(8, 3))
    assert "\n" not in str(error.value)


def test_many_names_are_gone_through_once(tmp_path, monkeypatch):
    """What is asked of the whole listing is asked once, not for every image of it."""
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as archive:
        for index in range(20_000):
            archive.writestr(f"{'ab'[index % 2]}/{index}.png", b"")
    asked, real = [], folder._is_wrapped
    monkeypatch.setattr(folder, "_is_wrapped", lambda names: asked.append(len(names)) or real(names))
    found = folder.find(tmp_path / "many.zip", Form(8, 3))
    assert found.class_names == ("a", "b") and np.bincount(found.labels).tolist() == [10_000, 10_000]
    assert asked == [20_000]


def test_the_middle_of_the_longer_side_is_cut_and_resized():
    wide = picture(0, (30, 12))
    square = np.asarray(wide)[:, 9:21]
    np.testing.assert_array_equal(pictures.decode(encoded(wide), Form(12, 3)), square)
    tall = wide.transpose(Image.Transpose.ROTATE_90)
    np.testing.assert_array_equal(pictures.decode(encoded(tall), Form(12, 3)), np.rot90(square))
    np.testing.assert_array_equal(pictures.decode(encoded(wide), Form(0, 3)), np.asarray(wide))
    flat = Image.new("RGB", (90, 60), (10, 200, 30))  # what a filter of unit gain leaves alone
    for size in (4, 60, 100):
        assert (pictures.decode(encoded(flat), Form(size, 3)) == (10, 200, 30)).all()
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))  # the finest there are: antialiased they are grey
    small = pictures.decode(encoded(Image.fromarray(stripes)), Form(8, 1))
    assert np.abs(small.astype(int) - 127).max() < 20


def test_colours_are_converted_by_rule():
    grey = picture(1, mode="L")
    as_rgb = pictures.decode(encoded(grey), Form(0, 3))
    np.testing.assert_array_equal(as_rgb, np.asarray(grey)[..., None].repeat(3, axis=-1))
    np.testing.assert_array_equal(pictures.decode(encoded(grey), Form(0, 1))[..., 0], np.asarray(grey))
    rgb = picture(2)
    luma = np.asarray(rgb) @ (0.299, 0.587, 0.114)
    assert np.abs(pictures.decode(encoded(rgb), Form(0, 1))[..., 0] - luma).max() < 1
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (pictures.decode(encoded(clear), Form(0, 3)) == 255).all()
    palette = rgb.convert("P")
    np.testing.assert_array_equal(pictures.decode(encoded(palette), Form(0, 3)), np.asarray(palette.convert("RGB")))


def test_the_orientation_of_a_camera_is_applied():
    image, exif = picture(3, (24, 16)), Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees clockwise when shown
    upright = pictures.decode(encoded(image, exif=exif), Form(0, 3))
    np.testing.assert_array_equal(upright, np.rot90(np.asarray(image), -1))


@pytest.mark.parametrize("orientation", range(9))
def test_every_orientation_is_that_of_pillow(orientation):
    image, exif = picture(3, (24, 16)), Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(pictures.decode(content, Form(0, 3)), np.asarray(expected))


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_what_a_camera_noted_may_be_damaged():
    """No bytes of an EXIF block end in anything but an image or one line."""
    image, exif, g = picture(3, (24, 16)), Image.Exif(), np.random.default_rng(0)
    exif[0x0112], exif[0x010F], exif[0x8769] = 6, "maker", {0x9003: "2019:05:01 00:00:00"}
    whole = exif.tobytes()
    turned = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    begun = b"Exif\0\0MM\0*\0\0\0\x08"
    contents = [  # the orientation as it should be, beside tags of a type that theirs is not
        begun + struct.pack(">H", 2) + turned + struct.pack(">HHI4s", tag, kind, 1, b"ab\0\x06") + bytes(4)
        for tag in (0x010F, 0x011A, 0x8769, 0xA005)
        for kind in range(14)
    ]
    for _ in range(300):
        broken = np.frombuffer(whole, np.uint8).copy()
        places = g.integers(6, len(broken), 3)
        broken[places] = g.integers(0, 256, 3)
        contents.append(broken.tobytes()[: g.integers(8, len(broken) + 1)])
    for exif_block in contents:
        for form in ("JPEG", "PNG", "WEBP"):
            try:
                found = pictures.decode(encoded(image, form, exif=exif_block), Form(0, 3))
            except UserError as error:
                assert "\n" not in str(error)
            else:
                assert sorted(found.shape) == [3, 16, 24]


def test_16_bits_a_channel_are_refused_in_colour_too():
    rows = b"".join(b"\0" + bytes(4 * 6) for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    packed = [struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks]
    with pytest.raises(UserError, match="has more than 8 bits a channel"):
        pictures.decode(b"\x89PNG\r\n\x1a\n" + b"".join(packed), Form(0, 3))


def test_a_separate_test_folder_needs_no_split(tmp_path):
    train_path = class_folders(tmp_path / "a", count=3)
    test_path = class_folders(tmp_path / "b", count=2)
    train, test = load(train_path, test_path=test_path)
    assert (len(train.labels), len(test.labels)) == (6, 4)


@pytest.mark.parametrize(
    ("spoil", "fields", "words"),
    [
        (lambda root: [path.unlink() for path in root.rglob("*.png")], {}, "holds no images; it should hold a folder"),
        (lambda root: (root / "bee" / "list.txt").write_text(""), {}, r"bee/list.txt is no image by its name; move"),
        (lambda root: picture(0).save(root / "top.png"), {}, "top.png lies in no class folder"),
        (lambda root: [path.unlink() for path in root.glob("bee/*")], {}, "one class folder only, ant"),
        (lambda root: [path.unlink() for path in root.glob("bee/[1-9]*")], {}, "class 'bee' has 1 of the images"),
        (lambda root: (root / "bee" / "3.png").write_bytes(b"text"), {}, r"bee/3.png is damaged or no PNG.*on_corrupt"),
        (lambda root: Image.new("I;16", (8, 8)).save(root / "bee" / "3.png"), {}, "3.png has more than 8 bits"),
        (
            lambda root: picture(0, (9, 9)).save(root / "bee" / "3.png"),
            {"image_size": 0},
            "3.png has 9 x 9 pixels, others",
        ),
        (lambda root: None, {"channels": 2}, r"channels must be 1 \(grey\) or 3 \(RGB\), got 2"),
        (lambda root: None, {"labels_path": "x.json"}, "reads no files|reads no labels_path"),
        (lambda root: None, {"test_fraction": 0.01}, "both parts need one"),
    ],
)
def test_bad_folders_end_in_one_line(tmp_path, spoil, fields, words):
    root = tmp_path / "photos"
    class_folders(root)
    spoil(root)
    with pytest.raises(UserError, match=words) as error:
        load(root, **fields)
    assert "\n" not in str(error.value)


def test_a_truncated_image_is_named(tmp_path):
    class_folders(tmp_path / "photos")
    bad = tmp_path / "photos" / "ant" / "4.jpg"
    bad.write_bytes(encoded(picture(0, (64, 64)), "JPEG")[:-400])
    with pytest.raises(UserError, match=r"ant/4\.jpg is damaged"):
        load(tmp_path / "photos")


def test_the_classes_of_train_and_test_must_agree(tmp_path):
    train, test = class_folders(tmp_path / "a", ("ant", "bee", "cat")), class_folders(tmp_path / "b")
    with pytest.raises(UserError, match="has 3 classes and .* 2; only one of them has: cat"):
        load(train, test_path=test)


def test_missing_paths_are_said(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load(tmp_path / "nothing")
    with pytest.raises(UserError, match="'folder' needs path, a folder or zip"):
        load("")


def arrays(count=12, **more):
    g = np.random.default_rng(0)
    return {"images": g.integers(0, 256, (count, 8, 8), np.uint8), "labels": np.arange(count) % 3} | more


def read_npz(tmp_path, content, **fields):
    np.savez(tmp_path / "mine.npz", **content)
    return sources.load(DataSpec("npz", path=str(tmp_path / "mine.npz"), **fields))


def test_npz_arrays_are_taken_as_they_are(tmp_path):
    content = arrays(class_names=np.array(["a", "b", "c"]))
    train, test = read_npz(tmp_path, content, test_fraction=0.5)
    assert train.class_names == ("a", "b", "c") and train.images.shape == (6, 8, 8, 1)
    whole = {image.tobytes() for image in content["images"]}
    assert {image.tobytes() for part in (train, test) for image in part.images} == whole
    more = {"test_images": content["images"][:3], "test_labels": content["labels"][:3]}
    train, test = read_npz(tmp_path, content | more)
    np.testing.assert_array_equal(train.images[..., 0], content["images"])
    np.testing.assert_array_equal(test.labels, [0, 1, 2])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"images": arrays()["images"]}, "has no array 'labels'"),
        (arrays(pictures=np.zeros(3)), "has an array 'pictures'"),
        (arrays(labels=np.arange(12) / 3), "labels must be whole numbers"),
        (arrays(images=np.zeros((12, 8, 8))), "images must be uint8"),
        (arrays(labels=np.arange(11) % 3), "labels must be int32"),
        (arrays(test_images=np.zeros((3, 8, 8), np.uint8)), "go together"),
        (arrays(class_names=np.array(["a", "b"])), "2 class_names, but labels up to 2"),
        (arrays(test_images=np.zeros((3, 9, 9), np.uint8), test_labels=np.arange(3)), "bring both to one form"),
    ],
)
def test_bad_npz_files_end_in_one_line(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_npz(tmp_path, content)


def test_npz_files_that_name_their_classes_in_another_order_are_refused(tmp_path):
    np.savez(tmp_path / "test.npz", **arrays(class_names=np.array(["a", "c", "b"])))
    with pytest.raises(UserError, match=r"test\.npz list their classes in another order .class 1 is b .* and c"):
        read_npz(tmp_path, arrays(class_names=np.array(["a", "b", "c"])), test_path=str(tmp_path / "test.npz"))


def given_run(tmp_path, arguments="", **keys):
    """A run on labels as given, of small images."""
    data = tmp_path / "photos"
    if not data.exists():
        class_folders(data, ("ant", "bee", "cat"), count=12)
        class_folders(tmp_path / "checked", ("ant", "bee", "cat"), count=6)
    config = FOLDER.get_config(f"data={data},smoke,image_size=16,methods=dsm,{arguments}")
    config.update_from_flattened_dict(keys)
    validate(config)
    return Run(FrozenConfigDict(config), tmp_path / "run")


def test_labels_as_given_stand_in_a_label_file_that_claims_nothing(tmp_path):
    run = given_run(tmp_path)
    made = run.new_labels
    np.testing.assert_array_equal(made.y_tilde, run.train_set.labels)
    assert run.known_S is None and not run.labels_are_clean
    label_files.write(tmp_path / "labels.json", made)
    content = json.loads((tmp_path / "labels.json").read_text())
    assert content["rate"] is content["realised_rate"] is None and content["S"] == [None] * 3
    again = label_files.read(tmp_path / "labels.json")
    np.testing.assert_array_equal(label_files.attach(again, run.train_set), made.y_tilde)
    content["realised_rate"] = 0.0
    (tmp_path / "labels.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="realised_rate must be null"):
        label_files.read(tmp_path / "labels.json")


def test_a_checked_test_set_is_half_reference_half_test(tmp_path):
    run = given_run(tmp_path, f"test={tmp_path / 'checked'}")
    whole = load(tmp_path / "photos", test_path=str(tmp_path / "checked"), image_size=16)[1]
    found = [image.tobytes() for part in (run.reference, run.test_set) for image in part.images]
    assert sorted(found) == sorted(image.tobytes() for image in whole.images)
    assert np.bincount(run.reference.labels).tolist() == np.bincount(run.test_set.labels).tolist() == [3, 3, 3]
    assert given_run(tmp_path).reference is None
    drawn = given_run(tmp_path, "noise=sym")
    assert drawn.reference is drawn.train_set and drawn.known_S is not None


def test_a_class_with_one_checked_image_cannot_be_halved(tmp_path):
    images = np.zeros((8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "train.npz", images=images, labels=np.arange(8) % 2)
    np.savez(tmp_path / "test.npz", images=images[:4], labels=np.array([0, 0, 0, 1]))
    paths = {"data.path": str(tmp_path / "train.npz"), "data.test_path": str(tmp_path / "test.npz")}
    run = given_run(tmp_path, **{"data.name": "npz", "data.image_size": 32} | paths)
    with pytest.raises(UserError, match=r"test.npz: class 1 has 1 of the checked images, half of which are compared"):
        run.test_set  # noqa: B018


def test_test_images_inside_a_npz_file_are_not_taken_for_checked(tmp_path):
    images, y = np.zeros((8, 16, 16, 3), np.uint8), np.arange(8) % 2
    np.savez(tmp_path / "a.npz", images=images, labels=y, test_images=images, test_labels=y)
    keys = {"data.name": "npz", "data.path": str(tmp_path / "a.npz"), "data.image_size": 32}
    assert given_run(tmp_path, **keys).reference is None
    with pytest.raises(UserError, match="leave test_path out, or leave them out of the file"):
        given_run(tmp_path, **keys, **{"data.test_path": str(tmp_path / "a.npz")}).train_set  # noqa: B018
    with pytest.raises(UserError, match=r"data.test_path \(test images inside a .npz file or a prepared .* are not"):
        checks.check(given_run(tmp_path, **{"evaluation.classifiers": ("stages", "resnet18")}))


@pytest.mark.parametrize(
    ("arguments", "keys", "words"),
    [
        ("", {"transition.estimator": "known"}, "transition.estimator=known is the matrix that labels were drawn"),
        ("", {"methods": ("dsm", "clean")}, "clean trains on true labels, which label_noise.kind=given has none of"),
        ("", {"label_noise.path": "x.npy"}, "labels as given are those of the data"),
        ("transition=counts", {}, "counts true classes, which nobody knows of photos"),
    ],
)
def test_what_true_labels_are_needed_for_is_refused(tmp_path, arguments, keys, words):
    with pytest.raises(UserError, match=words):
        checks.check(given_run(tmp_path, arguments, **keys))


def test_pairs_beside_the_images_count_as_a_subset_does():
    g = np.random.default_rng(0)
    y = g.integers(0, 3, 90)
    y_tilde = np.where(g.random(90) < 0.3, (y + 1) % 3, y)
    some = np.arange(0, 90, 2)
    inside = estimate("counts", Evidence(3, y_tilde, clean_index=some, clean_labels=y[some]))
    beside = estimate("counts", Evidence(3, y_tilde, clean_given=y_tilde[some], clean_labels=y[some]))
    np.testing.assert_array_equal(inside.S, beside.S)
    for fields, words in (
        ({"clean_given": y_tilde}, "goes with clean_labels"),
        ({"clean_given": y_tilde, "clean_labels": y, "clean_index": some}, "without clean_index"),
        ({"clean_given": y_tilde[:3], "clean_labels": y}, "90 clean labels do not match 3"),
        ({"clean_given": y_tilde + 1, "clean_labels": y}, r"clean_given span 1\.\.3"),
    ):
        with pytest.raises(UserError, match=words):
            Evidence(3, y_tilde, **fields)


def call(*arguments, config):
    """The real entry point, in a folder of its own."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"), "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-m", "tdsm_jax.main", f"--config={ROOT}/configs/{config}", *arguments],
        cwd=ROOT,
        env=os.environ | cache,
        capture_output=True,
        text=True,
        check=False,
    )


SMALL = (  # a fraction of the time to compile
    "--config.score.augment=0",
    "--config.network.attention_resolutions=()",
    "--config.network.multipliers=(1,)",
)


def test_the_example_of_the_docs_runs_on_a_folder_of_pngs(tmp_path):
    """One command from a folder to models and a page, without a single label that is known to be true."""
    photos = class_folders(tmp_path / "photos", ("ant", "bee", "cat"), count=12)
    workdir = tmp_path / "run"
    example = f"folder.py:data={photos},image_size=16,methods=dsm,smoke"
    done = call(f"--workdir={workdir}", *SMALL, config=example)
    assert done.returncode == 0, done.stderr[-3000:]
    metrics = json.loads((workdir / "metrics.json").read_text())
    # Metrics of labels are left out, and the page says so: there is nothing true to compare with.
    assert metrics["methods"]["dsm"].keys() == metrics["real"].keys() == {"fd", "density", "coverage"}
    assert "label fidelity, CAS and class-wise distances are left out" in metrics["labels_as_given"]
    assert metrics["transition"]["relative_l1"] is None and metrics["recovery"] == {}
    assert not {"accuracy", "calibration_error", "weight_error", "expected_own_weight"} & metrics["classifier"].keys()
    page = (workdir / "report.html").read_text()
    assert "labels as given" in page and "are left out" in page and "nan" not in page.lower().replace("nano", "")
    assert set(np.load(workdir / "samples" / "dsm.npz")["labels"]) == {0, 1, 2}


def test_metrics_of_labels_rest_on_the_checked_images(tmp_path, monkeypatch):
    """The judge never learns from a label as given, and no such label is compared with."""
    run = given_run(tmp_path, f"test={tmp_path / 'checked'}")
    learnt = []
    nothing = SimpleNamespace(params=None)
    monkeypatch.setattr(judge_stages, "fit_plain", lambda run, data, name: learnt.append(data) or nothing)
    monkeypatch.setattr(judge_stages.classifiers, "write_fitted", lambda path, fitted: None)
    monkeypatch.setattr(
        judge_stages.judge, "look", lambda *given: (None, np.asarray(given[2], float).mean(axis=(1, 2)))
    )
    judge_stages.fit_judge(run)
    np.testing.assert_array_equal(learnt[0].images, run.reference.images)
    np.testing.assert_array_equal(learnt[0].labels, run.reference.labels)
    made, y = 128 + 20 * np.random.default_rng(0).random((12, 3)), np.arange(12) % 3
    measured = judge_stages.distances(run, made, y)
    assert {"cw_fd", "cw_density", "fd"} <= measured.keys()
    real = run.reference.images.astype(float).mean(axis=(1, 2))
    assert measured == statistics.compare(real, run.reference.labels, made, y, run.config.evaluation.nearest)
    object.__setattr__(run.train_set, "labels", np.roll(run.train_set.labels, 1))
    assert judge_stages.distances(run, made, y) == measured
    object.__setattr__(run.reference, "labels", np.roll(run.reference.labels, 1))  # which do matter
    assert judge_stages.distances(run, made, y)["cw_fd"] != measured["cw_fd"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("data=nowhere,smoke", "nowhere: no such file or folder"),
        ("smoke", "needs path, a folder or zip file of class folders"),
        ("data=x,noise=symm,smoke", "noise='symm' is not a choice; did you mean 'sym'"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(tmp_path, arguments, words):
    done = call(f"--workdir={tmp_path / 'run'}", config=f"folder.py:{arguments}")
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]


def test_a_matrix_of_ones_own_is_read(tmp_path):
    np.savetxt(tmp_path / "S.csv", np.full((3, 3), 0.1) + 0.7 * np.eye(3), delimiter=",")
    run = given_run(tmp_path, f"matrix={tmp_path / 'S.csv'}")
    assert run.config.transition.estimator == "file"
    np.testing.assert_allclose(np.diag(run.given_S), 0.8)
    checks.check(run)
