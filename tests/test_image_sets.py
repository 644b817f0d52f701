"""Image sets in every form that samples and datasets are kept in, and what is none."""

import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from tdsm_jax.data import edm_zip, image_sets, sources
from tdsm_jax.data.dataset import images_hash
from tdsm_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), np.uint8)
LABELS = np.array([1, 0, 1, 2, 0, 2], np.int32)


def png(image):
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()


def write_pngs(path, names, images=IMAGES):
    """Writes PNG files under names to a folder, or to a zip file."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, image in zip(names, images, strict=True):
                archive.writestr(name, png(image))
        return
    for name, image in zip(names, images, strict=True):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(png(image))


def everything(images):
    return images.images[:]


@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_archives_with_their_labels(name, tmp_path):
    path = tmp_path / name
    edm_zip.write(path, IMAGES, LABELS, ("a", "b", "c", "d"))
    found = image_sets.read(str(path))
    np.testing.assert_array_equal(everything(found), IMAGES)
    np.testing.assert_array_equal(found.images[np.array([4, 1])], IMAGES[[4, 1]])
    np.testing.assert_array_equal(found.labels, LABELS)
    assert found.images.shape == IMAGES.shape and len(found.images) == 6
    assert found.class_names == ("a", "b", "c", "d") and found.num_classes == 4
    assert found.content_hash == images_hash(IMAGES)


def test_labels_of_an_archive_are_replaced_and_parts_are_those_of_a_run(tmp_path):
    path, labels = tmp_path / "set.zip", tmp_path / "noisy.json"
    edm_zip.write(path, IMAGES, LABELS)
    names = edm_zip.image_names(6)
    labels.write_text(json.dumps({"labels": [[name, 0] for name in names]}))
    assert image_sets.read(str(path), labels_path=str(labels)).labels.tolist() == [0] * 6
    train, test = sources.load(sources.DataSpec("archive", path=str(path), test_fraction=0.5, split_seed=3))
    for split, part in (("train", train), ("test", test)):
        found = image_sets.read(str(path), split, given={"test_fraction": 0.5, "split_seed": 3})
        np.testing.assert_array_equal(found.images, part.images)
        np.testing.assert_array_equal(found.labels, part.labels)


@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_subfolders_are_classes(name, tmp_path):
    names = ["bee/x.png", "ant/1.png", "bee/y.png", "cow/z.png", "ant/2.png", "cow/w.png"]
    write_pngs(tmp_path / name, names)
    found = image_sets.read(str(tmp_path / name))
    order = np.argsort(names)
    np.testing.assert_array_equal(everything(found), IMAGES[order])
    assert found.labels.tolist() == LABELS[order].tolist() and found.class_names == ("ant", "bee", "cow")


@pytest.mark.parametrize("above", ["", "set/"])
def test_folders_named_by_numbers_are_those_classes(above, tmp_path):
    """Not by the order of their names, in which 10 comes before 2."""
    images = np.arange(24, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3)
    write_pngs(tmp_path / "set", [f"{above}{i % 12}/{i}.png" for i in range(24)], images)
    found = image_sets.read(str(tmp_path / "set"))
    assert found.labels.tolist() == (everything(found)[:, 0, 0, 0] % 12).tolist()
    assert found.num_classes == 12 and found.class_names == tuple(map(str, range(12)))
    write_pngs(tmp_path / "gaps", ["2/a.png", "10/b.png"], images[:2])
    found = image_sets.read(str(tmp_path / "gaps"))
    assert found.labels.tolist() == [10, 2] and found.num_classes == 11
    write_pngs(tmp_path / "words", [f"{above}c{i % 12}/{i}.png" for i in range(24)], images)
    assert image_sets.read(str(tmp_path / "words")).class_names[:4] == ("c0", "c1", "c10", "c11")


@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_images_in_a_single_folder_are_unlabelled(name, tmp_path):
    write_pngs(tmp_path / name, [f"samples/{i}.png" for i in range(6)])
    found = image_sets.read(str(tmp_path / name))
    assert found.labels is None and found.class_names == () and len(found.images) == 6


@pytest.mark.parametrize("names", [[f"{i:06d}.png" for i in range(6)], [f"{i // 4:06d}/{i:06d}.png" for i in range(6)]])
def test_flat_and_numbered_folders_are_unlabelled(names, tmp_path):
    write_pngs(tmp_path / "set", names)
    found = image_sets.read(str(tmp_path / "set"))
    np.testing.assert_array_equal(everything(found), IMAGES)
    assert found.labels is None and found.num_classes is None and found.class_names == ()


def test_arrays_of_ours_and_of_adm(tmp_path):
    np.savez(tmp_path / "ours.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "adm.npz", IMAGES, LABELS.astype(np.int64))  # arr_0, arr_1
    np.savez(tmp_path / "alone.npz", IMAGES)
    np.save(tmp_path / "alone.npy", IMAGES)
    np.save(tmp_path / "grey.npy", IMAGES[..., 0])
    for name, labelled in (("ours.npz", True), ("adm.npz", True), ("alone.npz", False), ("alone.npy", False)):
        found = image_sets.read(str(tmp_path / name))
        np.testing.assert_array_equal(everything(found), IMAGES)
        assert found.content_hash == images_hash(IMAGES)
        assert (found.labels is not None) == labelled
        if labelled:
            np.testing.assert_array_equal(found.labels, LABELS)
            assert found.labels.dtype == np.int32 and found.num_classes == 3
    np.testing.assert_array_equal(image_sets.read(str(tmp_path / "grey.npy")).images, IMAGES[..., :1])


def test_named_datasets():
    train, test = sources.load(sources.DataSpec("digits"))
    for split, part in ((None, train), ("train", train), ("test", test)):
        found = image_sets.read("digits", split)
        np.testing.assert_array_equal(found.images, part.images)
        np.testing.assert_array_equal(found.labels, part.labels)
    assert len(image_sets.read("synthetic", given={"num_images": 100}).images) == 80


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"images": IMAGES / 255.0}, "images must be uint8 in 0..255, got float64"),
        ({"images": IMAGES.transpose(0, 3, 1, 2)}, r"images \(6, 3, 4, 4\) have their channels first"),
        ({"images": IMAGES[..., :2]}, r"images must be \[N, H, W, C\]"),
        ({"images": IMAGES[:0]}, r"with N >= 1"),
        ({"images": IMAGES, "labels": LABELS[:2]}, "labels must be 6 integers from 0"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels must be 6 integers from 0, got float64"),
        ({"images": IMAGES, "labels": LABELS - 1}, "labels must be 6 integers from 0"),
        ({"features": IMAGES}, "holds features, neither images nor arr_0"),
        ({"images": np.array([{}])}, "not a readable array file"),
    ],
)
def test_arrays_that_are_no_images_are_refused(content, said, tmp_path):
    path = tmp_path / "set.npz"
    np.savez(path, **content)
    with pytest.raises(UserError, match=said) as error:
        image_sets.read(str(path))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_image_set_is_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    write_pngs(tmp_path / "mixed", ["1.png", "a/2.png"], IMAGES[:2])
    np.save(tmp_path / "x.npy", IMAGES)
    for arguments, said in (
        (("absent.zip",), "absent.zip: no such file, folder or dataset"),
        (("digit",), "did you mean 'digits'"),
        ((f"{tmp_path}/text.npy",), "text.npy: not a readable array file"),
        ((f"{tmp_path}/mixed",), "holds PNG files beside folders of them"),
        ((f"{tmp_path}/x.npy", "test"), "is taken whole; a split is chosen of an archive"),
        ((f"{tmp_path}/x.npy", None, "labels.json"), "have no names to match the labels of labels.json by"),
        (("digits", None, "labels.json"), "have no names to match the labels"),
    ):
        with pytest.raises(UserError, match=said):
            image_sets.read(*arguments)
