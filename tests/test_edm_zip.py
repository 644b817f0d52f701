"""The StyleGAN/EDM dataset format: hand-made archives are read, ours are written, and nothing else gets through."""

import contextlib
import io
import itertools
import json
import os
import pathlib
import struct
import subprocess
import sys
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tdsm_jax.data import containers, edm_zip, label_files, png, sources
from tdsm_jax.data.dataset import Dataset
from tdsm_jax.data.edm_zip import Archive
from tdsm_jax.data.sources import DataSpec
from tdsm_jax.data.stream import Streamed, loaded
from tdsm_jax.errors import UserError
from tdsm_jax.labels.corruption import symmetric

ROOT = pathlib.Path(__file__).parents[1]
FIRST = "00000/img00000000.png"
SECOND = "00000/img00000001.png"


def pictures(count=5, size=4, channels=3):
    return np.random.default_rng(count + channels).integers(0, 256, (count, size, size, channels), np.uint8)


def labels_for(count):
    return (np.arange(count, dtype=np.int32) * 7) % 3


def png_of(pixels, mode=None):
    file = io.BytesIO()
    pixels = np.asarray(pixels)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 and pixels.ndim == 3 else pixels)
    (image.convert(mode) if mode else image).save(file, "PNG")
    return file.getvalue()


def by_hand(images, labels):
    """The files of an archive, made without the code under test."""
    contents = {f"{i // 1000:05d}/img{i:08d}.png": png_of(image) for i, image in enumerate(images)}
    pairs = None if labels is None else [[name, int(y)] for name, y in zip(contents, labels, strict=True)]
    return contents | {"dataset.json": json.dumps({"labels": pairs}).encode()}


def pack(path, contents, compression=zipfile.ZIP_STORED):
    """Writes name -> bytes as a zip file or a folder, in an order that is not the sorted one."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in reversed(contents):
                archive.writestr(name, contents[name])
    else:
        for name in contents:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(contents[name])
    return path


def with_header(width, height, depth=8):
    """A PNG file whose header, checksum included, claims another form than its pixels have."""
    content = bytearray(png_of(pictures()[0]))
    content[16:25] = struct.pack(">IIB", width, height, depth)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def file_bytes(path):
    if path.is_file():
        return path.read_bytes()
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def refusal(path, ask=Archive.load):
    """The complaint about an archive, which is one line and names a file."""
    with pytest.raises(UserError) as error, Archive(path) as archive:
        ask(archive)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def own_labels(archive):
    return archive.labels


@pytest.fixture(params=["zip file", "folder"])
def target(request, tmp_path):
    return tmp_path / ("data.zip" if request.param == "zip file" else "data")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_made_by_hand_is_read(target, channels, compression):
    images, labels = pictures(channels=channels), labels_for(5)
    with Archive(pack(target, by_hand(images, labels), compression)) as archive:
        assert archive.names == [f"00000/img0000000{i}.png" for i in range(5)]
        assert archive.image_shape == (4, 4, channels)
        np.testing.assert_array_equal(archive.labels, labels, strict=True)
        assert archive.class_names == ()
        np.testing.assert_array_equal(archive.load(), images, strict=True)
        np.testing.assert_array_equal(Streamed(archive)[np.array([3, 0, 3])], images[[3, 0, 3]], strict=True)


def test_the_order_is_that_of_the_sorted_names(target):
    """As officially: neither that of the zip file's directory nor that of dataset.json."""
    images = pictures(3)
    names = ["b/2.png", "a/10.png", "b/1.PNG"]
    contents = {name: png_of(image) for name, image in zip(names, images, strict=True)} | {"notes.txt": b"hello"}
    contents["dataset.json"] = json.dumps({"labels": [["b/2.png", 2], ["a/10.png", 0], ["b/1.PNG", 1]]}).encode()
    with Archive(pack(target, contents)) as archive:
        assert archive.names == ["a/10.png", "b/1.PNG", "b/2.png"]
        assert archive.labels.tolist() == [0, 1, 2]
        np.testing.assert_array_equal(archive.load(), images[[1, 2, 0]])


def test_unlabelled_images(target):
    with Archive(pack(target, by_hand(pictures(), None))) as archive:
        assert archive.labels is None


def test_names_fill_folders_of_a_thousand():
    names = edm_zip.image_names(1002)
    assert (names[0], names[999], names[1000]) == (FIRST, "00000/img00000999.png", "00001/img00001000.png")
    assert names == sorted(names)


@settings(deadline=None, max_examples=25)
@given(
    count=st.integers(1, 12),
    size=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    labelled=st.booleans(),
    suffix=st.sampled_from([".zip", ""]),
)
def test_what_is_written_is_read_back(tmp_path_factory, count, size, channels, labelled, suffix):
    path = tmp_path_factory.mktemp("archive") / f"made{suffix}"
    images, labels = pictures(count, size, channels), labels_for(count) if labelled else None
    edm_zip.write(path, images, labels, ("cat", "dog", "élan") if labelled else ())
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive.load(), images, strict=True)
        np.testing.assert_array_equal(archive.labels, labels)
        assert archive.class_names == (("cat", "dog", "élan") if labelled else ())


def test_other_readers_find_what_they_expect(tmp_path):
    """Stored entries, uncompressed PNGs and the plain JSON form, seen without the code under test."""
    images, labels = pictures(3), labels_for(3)
    edm_zip.write(tmp_path / "data.zip", images, labels)
    with zipfile.ZipFile(tmp_path / "data.zip") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        names = [name for name in archive.namelist() if name.endswith(".png")]
        pairs = json.loads(archive.read("dataset.json"))
        assert pairs == {"labels": [[name, int(y)] for name, y in zip(names, labels, strict=True)]}
        for name, image in zip(names, images, strict=True):
            decoded = Image.open(io.BytesIO(archive.read(name)))
            assert decoded.mode == "RGB" and (np.asarray(decoded) == image).all()


def test_the_bytes_are_deterministic(tmp_path):
    for name in ("a.zip", "b.zip", "a", "b"):
        edm_zip.write(tmp_path / name, pictures(), labels_for(5))
    assert file_bytes(tmp_path / "a.zip") == file_bytes(tmp_path / "b.zip")
    assert file_bytes(tmp_path / "a") == file_bytes(tmp_path / "b")
    assert list(file_bytes(tmp_path / "a")) == [*edm_zip.image_names(5), "dataset.json"]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {(entry.create_system, entry.external_attr >> 16) for entry in archive.infolist()} == {(3, 0o100644)}
    assert edm_zip.labels_text(["a.png", "b.png"], np.array([1, 0]), ("x", "y")) == (
        '{"class_names": ["x", "y"],\n"labels": [\n["a.png", 1],\n["b.png", 0]\n]}\n'
    )


def test_a_failed_write_leaves_nothing(target, monkeypatch):
    def fail(image):
        raise KeyboardInterrupt

    monkeypatch.setattr(png, "encode", fail)
    with pytest.raises(KeyboardInterrupt):
        edm_zip.write(target, pictures(), labels_for(5))
    assert os.listdir(target.parent) == []


def test_a_folder_gets_its_labels_last_and_its_name_after_that(tmp_path, monkeypatch):
    """What a kill leaves behind has another name and no dataset.json."""
    seen = []
    encode = png.encode
    monkeypatch.setattr(png, "encode", lambda image: seen.append(sorted(tmp_path.rglob("*"))) or encode(image))
    edm_zip.write(tmp_path / "data", pictures(), labels_for(5))
    assert not any(path.name in ("data", "dataset.json") for paths in seen for path in paths)
    assert os.listdir(tmp_path) == ["data"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": pictures().astype(np.float32)}, "square uint8 images"),
        ({"images": pictures()[:, :3]}, "3x4x3"),
        ({"images": pictures()[..., :2]}, "4x4x2"),
        ({"class_names": ("a", "b")}, "labels go up to 2, but there are 2 class names"),
        ({"names": ["a.png", "b.png", "d.png", "c.png", "e.png"]}, "sorted"),
        ({"names": ["a.png", "b.png", "c.png", "c.png", "e.png"]}, "distinct"),
        ({"names": ["../a.png", "b.png", "c.png", "d.png", "e.png"]}, "no plain relative name"),
    ],
)
def test_what_the_format_cannot_hold_is_not_written(target, changes, message):
    with pytest.raises(UserError, match=message):
        edm_zip.write(target, **({"images": pictures(), "labels": labels_for(5)} | changes))
    assert os.listdir(target.parent) == []


def test_nothing_is_overwritten(target):
    edm_zip.write(target, pictures(), labels_for(5))
    before = file_bytes(target)
    with pytest.raises(UserError, match="exists"):
        edm_zip.write(target, pictures(6), labels_for(6))
    assert file_bytes(target) == before


def test_reading_is_lazy(target, monkeypatch):
    decoded = []
    decode = png.decode
    monkeypatch.setattr(png, "decode", lambda content: decoded.append(content) or decode(content))
    images = pictures(40)
    with Archive(pack(target, by_hand(images, labels_for(40)))) as archive:
        assert archive.image_shape and archive.labels is not None
        assert decoded == []
        archive.read(7), archive.read(30)
        assert decoded == [png_of(images[7]), png_of(images[30])]


# What an archive must not hold: changed files (None: absent), who notices, and what is said.
@pytest.mark.parametrize(
    ("changes", "ask", "message"),
    [
        ({"dataset.json": None}, own_labels, "no dataset.json at its top level"),
        ({SECOND: None}, own_labels, f"labels for '{SECOND}' without an image"),
        ({"00000/img00000009.png": png_of(pictures()[0])}, own_labels, "no label for '00000/img00000009.png'"),
        ({SECOND: png_of(pictures(1, 8)[0])}, Archive.load, rf"{SECOND} has .* \(8, 8, 3\), but {FIRST} has \(4, 4, 3"),
        ({SECOND: png_of(pictures(1, 4, 1)[0])}, Archive.load, rf"{SECOND} has .* \(4, 4, 1\)"),
        ({FIRST: png_of(pictures()[0][:3])}, Archive, f"{FIRST} is 4 pixels wide and 3 high"),
        ({FIRST: png_of(pictures()[0, ..., 0].astype(np.uint16))}, Archive, f"{FIRST} is stored as 16-bit grey;"),
        ({SECOND: with_header(4, 4, depth=16)}, Archive.load, f"{SECOND} is stored as 16-bit RGB;"),
        ({SECOND: png_of(pictures()[0], "RGBA")}, Archive.load, f"{SECOND} is stored as 8-bit RGBA;"),
        ({SECOND: png_of(pictures()[0], "LA")}, Archive.load, "stored as 8-bit grey with alpha"),
        ({SECOND: png_of(pictures()[0], "P")}, Archive.load, "stored as .-bit palette"),
        ({SECOND: png_of(pictures()[0], "1")}, Archive.load, "stored as 1-bit grey"),
        ({SECOND: b""}, Archive.load, f"{SECOND} is not a PNG file"),
        ({SECOND: b"GIF89a" + bytes(100)}, Archive.load, f"{SECOND} is not a PNG file"),
        ({SECOND: png_of(pictures()[1])[:-30]}, Archive.load, f"{SECOND} is a damaged PNG file"),
        ({"00001/photo.jpg": b""}, Archive, "00001/photo.jpg is not named as a PNG file"),
        ({f"00000/img0000000{i}.png": None for i in range(5)}, Archive, "holds no PNG images"),
    ],
)
def test_unsupported_archives_are_refused(target, changes, ask, message):
    contents = by_hand(pictures(), labels_for(5)) | changes
    pack(target, {name: content for name, content in contents.items() if content is not None})
    with pytest.raises(UserError, match=message) as error:
        with Archive(target) as archive:
            ask(archive if ask is not Archive else target)
    assert str(target) in str(error.value) and "\n" not in str(error.value)


PAIRS = [[f"00000/img0000000{i}.png", i] for i in range(5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"labels": [', "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        ([1, 2], "not of the form"),
        ({"label": []}, "not of the form"),
        ({"labels": {"a": 1}}, r'"labels" must be a list of \[name, label\] pairs'),
        ({"labels": [*PAIRS, ["a"]]}, r"entry 5 of the labels is \['a'\]"),
        ({"labels": [*PAIRS, [1, "a"]]}, "entry 5"),
        ({"labels": [[FIRST, 1.0], *PAIRS[1:]]}, "has the label 1.0; labels are integers"),
        ({"labels": [[FIRST, -1], *PAIRS[1:]]}, "has the label -1"),
        ({"labels": [[FIRST, True], *PAIRS[1:]]}, "has the label True"),
        ({"labels": [[FIRST, None], *PAIRS[1:]]}, "has the label None"),
        ({"labels": [[FIRST, 2**40], *PAIRS[1:]]}, "has the label 1099511627776"),
        ({"labels": [[FIRST, [0.0, 1.0] * 50], *PAIRS[1:]]}, r"has the label \[0.0, 1.0, .*\.\.\.; labels"),
        ({"labels": [*PAIRS, PAIRS[0]]}, f"'{FIRST}' is labelled twice"),
        ({"labels": PAIRS[:3]}, "no label for '00000/img00000003.png' and 1 more"),
        ({"labels": [*PAIRS, ["../../etc/passwd", 0]]}, "labels for '../../etc/passwd' without an image"),
    ],
)
def test_malformed_labels_are_refused(tmp_path, content, message):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    inside = pack(tmp_path / "data.zip", by_hand(pictures(), None) | {"dataset.json": content})
    beside = tmp_path / "other.json"
    beside.write_bytes(content)
    for path, ask in ((inside, own_labels), (beside, lambda archive: archive.labels_of(beside))):
        with Archive(inside) as archive, pytest.raises(UserError, match=message) as error:
            ask(archive)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


def test_labels_from_elsewhere_are_matched_by_name(target, tmp_path):
    noisy = (labels_for(5) + 1) % 3
    pairs = [[name, int(y)] for name, y in zip(edm_zip.image_names(5), noisy, strict=True)]
    (tmp_path / "noisy.json").write_text(json.dumps({"labels": pairs[::-1]}))
    (tmp_path / "null.json").write_text('{"labels": null}')
    with Archive(pack(target, by_hand(pictures(), labels_for(5)))) as archive:
        np.testing.assert_array_equal(archive.labels_of(tmp_path / "noisy.json"), noisy, strict=True)
        np.testing.assert_array_equal(archive.labels, labels_for(5), strict=True)
        for name, message in (("null.json", "is null"), ("none.json", "no such file")):
            with pytest.raises(UserError, match=message):
                archive.labels_of(tmp_path / name)


def test_written_label_files_are_of_the_same_form(tmp_path):
    names, y_tilde = edm_zip.image_names(5), labels_for(5)
    (tmp_path / "noisy.json").write_text(edm_zip.labels_text(names, y_tilde, ("a", "b", "c")))
    np.testing.assert_array_equal(edm_zip.read_labels(tmp_path / "noisy.json", names)[0], y_tilde, strict=True)
    assert json.loads((tmp_path / "noisy.json").read_text())["labels"][1] == [SECOND, 1]


@pytest.mark.parametrize("class_names", ["cat", [1], [""], {"a": 0}])
def test_malformed_class_names_are_refused(tmp_path, class_names):
    content = json.dumps({"labels": None, "class_names": class_names}).encode()
    path = pack(tmp_path / "data.zip", by_hand(pictures(), None) | {"dataset.json": content})
    assert '"class_names" must be a list of names' in refusal(path, lambda archive: archive.class_names)


def test_a_zip_file_cut_anywhere_is_refused(tmp_path):
    whole = pack(tmp_path / "whole.zip", by_hand(pictures(), labels_for(5))).read_bytes()
    path = tmp_path / "cut.zip"
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        assert "no whole zip file" in refusal(path)
    path.unlink()
    assert "no such folder or zip file" in refusal(path)


def ask_everything(archive):
    return archive.names, archive.labels, archive.class_names, archive.load()


def test_every_changed_bit_of_an_image_is_noticed_or_harmless():
    """The last bytes matter most: a decoder has all pixels before it comes to the checksum behind them."""
    image = pictures(1, 32)[0]
    image[:16] = 7
    for whole in (png.encode(image), png_of(image)):
        for index, bit in itertools.product([*range(40), *range(len(whole) - 60, len(whole))], range(8)):
            content = bytearray(whole)
            content[index] ^= 1 << bit
            with contextlib.suppress(UserError):
                np.testing.assert_array_equal(png.decode(bytes(content)), image)


@settings(deadline=None, max_examples=150)
@given(data=st.data(), suffix=st.sampled_from([".zip", ""]))
def test_damage_is_refused_or_harmless(tmp_path_factory, data, suffix):
    """Overwritten bytes anywhere: a clear error, or the very same images; never a traceback or other pixels."""
    images = pictures()
    path = pack(tmp_path_factory.mktemp("damaged") / f"data{suffix}", by_hand(images, labels_for(5)))
    victim = path if suffix else path / data.draw(st.sampled_from([FIRST, SECOND]))
    content = bytearray(victim.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    victim.write_bytes(content)
    try:
        with Archive(path) as archive:
            names, _, _, read = ask_everything(archive)
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert names == edm_zip.image_names(5)
        np.testing.assert_array_equal(read, images)


def test_two_files_of_one_name_are_refused(tmp_path):
    path = pack(tmp_path / "data.zip", by_hand(pictures(), labels_for(5)))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr(SECOND, png_of(pictures()[0]))
    assert f"two files named '{SECOND}'" in refusal(path)


@pytest.mark.parametrize("name", ["../img.png", "/etc/img.png", "a/../../img.png", "a//img.png", "a\\img.png"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = pack(tmp_path / "data.zip", by_hand(pictures(), None) | {name: png_of(pictures()[0])})
    assert "no plain relative name" in refusal(path)


def test_encrypted_entries_are_refused(tmp_path):
    path = pack(tmp_path / "data.zip", {FIRST: png_of(pictures()[0])})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the flag in the central directory
    content[6] |= 1
    path.write_bytes(content)
    assert "encrypted" in refusal(path)


@pytest.mark.parametrize("name", ["a", "file/a", "loop/a", "a" * 300, "a\0b"])
def test_a_name_that_no_file_has_is_no_fault_of_the_disk(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(containers.Lost, match="no such file"):
        containers.read_file(tmp_path / name, 10)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = pack(tmp_path / "data", by_hand(pictures(), labels_for(5)))
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)
    assert f"{SECOND}: no such file" in refusal(folder)


def test_more_images_than_fit_into_memory_are_refused(target):
    path = pack(target, by_hand(pictures(), labels_for(5)))
    many = np.broadcast_to(0, 2**50)
    said = refusal(path, lambda archive: loaded(Streamed(archive, many), str(path)))
    assert "do not fit in memory; set config key data.stream=True" in said


def peak_memory(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (with_header(2**31 - 1, 2**31 - 1), "claims 2147483647 x 2147483647 pixels"),
        (with_header(4096, 4096), "damaged PNG file"),
        (bytes(2**26 + 1), "would unpack to 67108865 bytes"),
    ],
    ids=["sides", "pixels", "entry"],
)
def test_decompression_bombs_are_refused(tmp_path, content, message):
    path = pack(tmp_path / "bomb.zip", {FIRST: content}, zipfile.ZIP_DEFLATED)
    assert message in refusal(path)
    assert peak_memory(lambda: refusal(path)) < 60e6  # one image of the largest size


def test_a_stream_longer_than_it_claims_is_not_inflated(tmp_path):
    size = 2**25
    path = pack(tmp_path / "bomb.zip", {FIRST: bytes(size)}, zipfile.ZIP_DEFLATED)
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", size), struct.pack("<I", 100)))
    refusal(path)
    assert peak_memory(lambda: refusal(path)) < 2e6


def test_our_label_file_becomes_a_noisy_archive_and_comes_back(tmp_path):
    """labels.json -> dataset.json of noisy labels -> labels.json, for the same images."""
    images = pictures(30)
    dataset = Dataset("toy", images, np.arange(30, dtype=np.int32) % 3, ("a", "b", "c"))
    made = label_files.make(dataset, "sym", 0.4, 1, symmetric(3, 0.4))
    edm_zip.write(tmp_path / "clean.zip", images, dataset.labels)
    (tmp_path / "noisy.json").write_text(edm_zip.labels_text(edm_zip.image_names(30), made.y_tilde))
    spec = DataSpec("archive", path=str(tmp_path / "clean.zip"), test_path=str(tmp_path / "clean.zip"))
    train, _ = sources.load(spec)
    back = label_files.import_labels(train, sources.archive_labels(spec, str(tmp_path / "noisy.json")))
    np.testing.assert_array_equal(back.y_tilde, made.y_tilde, strict=True)
    np.testing.assert_array_equal(back.realised_matrix, made.realised_matrix)
    np.testing.assert_array_equal(back.S, made.realised_matrix)
    assert (back.images_hash, back.realised_rate, back.rate) == (
        made.images_hash,
        made.realised_rate,
        made.realised_rate,
    )


def convert(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "tdsm_jax.data.convert", *arguments],
        cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def test_the_command(tmp_path):
    """digits + a run's label file -> clean zip file + noisy dataset.json -> noisy folder."""
    train, test = sources.load(DataSpec("digits"))
    label_file = label_files.make(train, "sym", 0.4, 0, symmetric(10, 0.4))
    label_files.write(tmp_path / "labels.json", label_file)
    clean, noisy, folder = tmp_path / "clean.zip", tmp_path / "noisy.json", tmp_path / "noisy"

    code, out, err = convert(
        "--source=digits", f"--out={clean}", f"--labels={tmp_path / 'labels.json'}", f"--labels_out={noisy}"
    )
    assert (code, out) == (0, f"{clean}: 1438 images of 8x8x1\n"), err
    with Archive(clean) as archive:
        np.testing.assert_array_equal(archive.load(), train.images)
        np.testing.assert_array_equal(archive.labels, train.labels)
        np.testing.assert_array_equal(archive.labels_of(noisy), label_file.y_tilde)
        assert archive.class_names == train.class_names

    code, _, err = convert(f"--source={clean}", f"--out={folder}", f"--labels={noisy}")
    assert code == 0, err
    with Archive(folder) as archive:
        np.testing.assert_array_equal(archive.load(), train.images)
        np.testing.assert_array_equal(archive.labels, label_file.y_tilde)

    code, out, err = convert("--source=digits", f"--out={clean}")
    assert (code, out, err) == (2, "", f"error: {clean} exists; give another path or remove it\n")


def test_convert_refuses_what_says_nothing_and_labels_that_are_no_class(tmp_path):
    code, _, err = convert("--source=digits", f"--out={tmp_path / 'a.zip'}", "--num_images=5")
    assert code == 2 and "--num_images says nothing about digits" in err and not (tmp_path / "a.zip").exists()
    names = edm_zip.image_names(1438)
    noisy = tmp_path / "noisy.json"
    noisy.write_text(edm_zip.labels_text(names, np.full(len(names), 12), ()))
    code, _, err = convert("--source=digits", f"--out={tmp_path / 'b.zip'}", f"--labels={noisy}")
    assert code == 2 and "label 12, but the source has 10 classes" in err and not (tmp_path / "b.zip").exists()


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_hidden_files_are_no_part_of_an_archive(tmp_path, suffix):
    """Looking at a folder in a file manager does not make it another one."""
    path = tmp_path / f"archive{suffix}"
    edm_zip.write(path, pictures(), labels_for(5))
    before = edm_zip.fingerprint(path)
    for name in (".DS_Store", "00000/._img00000000.png", "__MACOSX/00000/x.png", "00000/.thumbnail.jpg"):
        if suffix:
            with zipfile.ZipFile(path, "a") as archive:
                archive.writestr(name, b"junk")
        else:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(b"junk")
    assert edm_zip.fingerprint(path) == before
    with Archive(path) as archive:
        np.testing.assert_array_equal(archive.load(), pictures())


def test_the_fingerprint_changes_with_the_labels_and_the_images_of_an_archive(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 1)).astype(np.uint8)
    prints = []
    for number, (pixels, labels) in enumerate([(images, range(6)), (images, [0] * 6), (255 - images, range(6))]):
        for path in (tmp_path / f"{number}.zip", tmp_path / f"{number}"):
            edm_zip.write(path, pixels, np.array(list(labels), np.int32))
            prints.append(edm_zip.fingerprint(path))
            assert edm_zip.fingerprint(path) == prints[-1]
    zips, folders = prints[::2], prints[1::2]
    assert len(set(zips)) == 3 and folders[0] != folders[1]
    assert edm_zip.fingerprint(tmp_path / "0" / "dataset.json") != edm_zip.fingerprint(tmp_path / "1" / "dataset.json")
