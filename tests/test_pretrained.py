"""CLIP and its kin from a local folder: the models' own embeddings, CMMD's preprocessing, refused folders."""

import json
import sys

import numpy as np
import pytest
from PIL import Image

from tdsm_jax import files
from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import pretrained
from tdsm_jax.evaluation.features import extract
from tdsm_jax.evaluation.pretrained import Preprocessing, preprocess, read_preprocessing
from tdsm_jax.extractors import open_extractor
from tdsm_jax.training.parallel import data_mesh

SIDE = 32
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SETTINGS = {
    "do_resize": True, "size": {"shortest_edge": SIDE}, "resample": 3, "do_center_crop": True,
    "crop_size": {"height": SIDE, "width": SIDE}, "do_rescale": True, "rescale_factor": 1 / 255,
    "do_normalize": True, "image_mean": MEAN, "image_std": STD,
}  # fmt: skip
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = SMALL | {"image_size": SIDE, "patch_size": 8}
TEXT = SMALL | {"vocab_size": 20, "max_position_embeddings": 8}


def model_of(kind):
    """Returns a tiny model of a kind with random weights, whole as the hub has it, and its width."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    if kind == "clip":
        config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
        return transformers.CLIPModel(config).eval(), 12
    if kind == "siglip":
        config = transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)
        return transformers.SiglipModel(config).eval(), 16
    if kind == "align":
        vision = {
            "image_size": SIDE, "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 160,
            "in_channels": [16, 8], "out_channels": [8, 160], "kernel_sizes": [3, 3], "strides": [1, 2],
            "num_block_repeats": [1, 1], "expand_ratios": [1, 2], "depthwise_padding": [], "hidden_act": "swish",
        }  # fmt: skip
        config = transformers.AlignConfig(text_config=TEXT, vision_config=vision, projection_dim=160)
        return transformers.AlignModel(config).eval(), None
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=SIDE, patch_size=8
    )
    return transformers.Dinov2Model(config).eval(), 16


def saved(kind, folder, **options):
    model, width = model_of(kind)
    for weights in model.parameters():  # as they are drawn, ALIGN's let every image fade to the same numbers
        if weights.ndim > 1:
            weights.data.normal_(std=weights[0].numel() ** -0.5)
    model.save_pretrained(folder, **options)
    files.write_json(folder / "preprocessor_config.json", SETTINGS)
    return model, width


def called_directly(kind, model, x):
    """Returns the model's own embeddings, by the whole model's own method where there is one."""
    import torch

    with torch.no_grad():
        x = torch.from_numpy(x)
        if kind == "dinov2":
            return model(pixel_values=x).last_hidden_state[:, 0].numpy()
        out = model.get_image_features(pixel_values=x)
        out = out if torch.is_tensor(out) else out.pooler_output
        return out.flatten(1).numpy()


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 20, 20, 3), dtype=np.uint8)


# -- embeddings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", pretrained.KINDS)
def test_the_embeddings_are_the_models_own(kind, tmp_path, images, monkeypatch):
    model, width = saved(kind, tmp_path)
    monkeypatch.setattr(pretrained, "BATCH_SIZE", 2)
    extractor = open_extractor(f"{kind}:{tmp_path}", data_mesh())
    assert extractor.name == kind
    assert len(extractor.digest) == 64
    seen = extract(extractor, images, label=kind)
    direct = called_directly(kind, model, preprocess(images, read_preprocessing(tmp_path / "preprocessor_config.json")))
    assert seen.probabilities is None
    assert seen.features.shape == direct.shape == (5, extractor.width) and width in (None, extractor.width)
    assert direct.std(axis=0).max() > 1e-4  # images differ
    np.testing.assert_allclose(seen.features, direct, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("form", ["shards", "bin"])
def test_weights_in_shards_and_of_pytorch_are_read_alike(form, tmp_path, images):
    torch = pytest.importorskip("torch")
    model, _ = saved("clip", tmp_path / "whole")
    saved("clip", tmp_path / form, max_shard_size="10KB" if form == "shards" else "1GB")
    if form == "bin":
        (tmp_path / form / "model.safetensors").unlink()
        torch.save(model.state_dict(), tmp_path / form / "pytorch_model.bin")
    else:
        assert len(list((tmp_path / form).glob("model-*.safetensors"))) > 1
    whole, other = (open_extractor(f"clip:{tmp_path}/{name}", data_mesh()) for name in ("whole", form))
    assert whole.digest != other.digest and len(other.digest) == 64
    np.testing.assert_array_equal(extract(whole, images, label="").features, extract(other, images, label="").features)


def test_the_digest_is_of_weights_and_settings(tmp_path):
    torch = pytest.importorskip("torch")
    saved("clip", tmp_path)
    torch.backends.cudnn.allow_tf32 = True
    digests = {open_extractor(f"clip:{tmp_path}", data_mesh()).digest}
    assert not torch.backends.cudnn.allow_tf32
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS | {"image_mean": [0.5, 0.5, 0.5]})
    digests.add(open_extractor(f"clip:{tmp_path}", data_mesh()).digest)
    config = files.read_json(tmp_path / "config.json")
    config["vision_config"]["hidden_act"] = "gelu"
    files.write_json(tmp_path / "config.json", config)
    digests.add(open_extractor(f"clip:{tmp_path}", data_mesh()).digest)
    (tmp_path / "weights").mkdir()
    saved("clip", tmp_path / "weights", max_shard_size="10KB")
    digests.add(open_extractor(f"clip:{tmp_path}/weights", data_mesh()).digest)
    assert len(digests) == 4


# -- preprocessing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 20), (48, 40), (30, 64)])
def test_the_middle_square_is_resized_by_pillow_and_normalised(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    got = preprocess(image[None], Preprocessing(24, 1 / 255, np.float32(MEAN), np.float32(STD)))
    edge, (height, width) = min(shape), shape
    box = ((width - edge) // 2, (height - edge) // 2, (width - edge) // 2 + edge, (height - edge) // 2 + edge)
    square = Image.fromarray(image).crop(box).resize((24, 24), Image.BICUBIC)
    expected = (np.asarray(square, np.float64) / 255 - MEAN) / STD
    assert got.shape == (1, 3, 24, 24) and got.dtype == np.float32
    np.testing.assert_allclose(got[0].transpose(1, 2, 0), expected, atol=1e-5)


def test_a_square_image_is_seen_as_the_hubs_clip_processor_shows_it(images):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch")
    processor_class = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    try:
        processor = processor_class(**SETTINGS)
        theirs = processor([Image.fromarray(image) for image in images], return_tensors="np")["pixel_values"]
    except ImportError as error:  # some releases need torchvision for it
        pytest.skip(str(error))
    to = Preprocessing(SIDE, 1 / 255, np.float32(MEAN), np.float32(STD))
    np.testing.assert_allclose(preprocess(images, to), theirs, atol=1e-5)


def test_grayscale_is_repeated(images):
    to = Preprocessing(SIDE, 1 / 255, np.float32(MEAN), np.float32(STD))
    gray = images[..., :1]
    np.testing.assert_array_equal(preprocess(gray, to), preprocess(gray.repeat(3, axis=-1), to))


@pytest.mark.parametrize(
    ("changes", "side", "black", "white"),
    [
        ({}, SIDE, -MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]),
        ({"do_center_crop": False, "size": {"height": 48, "width": 48}}, 48, -MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]),
        ({"size": 40, "do_center_crop": None}, 40, -MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]),
        ({"do_normalize": False, "rescale_factor": 1 / 127.5, "rescale_offset": True}, SIDE, -1, 1),
        ({"do_normalize": False}, SIDE, 0, 1),
    ],
    ids=["crop", "size", "number", "offset", "plain"],
)
def test_the_models_settings_are_read(changes, side, black, white, tmp_path):
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS | changes)
    to = read_preprocessing(tmp_path / "preprocessor_config.json")
    assert to.side == side
    seen = preprocess(np.array([0, 255], np.uint8).reshape(2, 1, 1, 1), to)
    np.testing.assert_allclose(seen[:, 0, 0, 0], [black, white], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"image_mean": None}, "does not say size|make no sense"),
        ({"image_std": [1, 0, 1]}, "make no sense"),
        ({"image_mean": [0.5]}, "make no sense"),
        ({"crop_size": {"height": 224, "width": 336}}, "does not say size"),
        ({"crop_size": 10**6}, "its side 1000000"),
        ({"crop_size": "224"}, "its side '224'"),
        ({"rescale_factor": "a"}, "does not say size"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(changes, match, tmp_path):
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS | changes)
    with pytest.raises(UserError, match=match) as refused:
        read_preprocessing(tmp_path / "preprocessor_config.json")
    assert "\n" not in str(refused.value)


def test_settings_must_be_a_table(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(UserError, match="does not say size"):
        read_preprocessing(tmp_path / "preprocessor_config.json")


# -- folders that are refused -------------------------------------------------------------------------------


def refused(spec):
    with pytest.raises(UserError) as error:
        open_extractor(spec, data_mesh())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_that_lacks_a_file_is_refused(tmp_path):
    assert "config.json: no such file" in refused(f"clip:{tmp_path}")
    files.write_json(tmp_path / "config.json", {"model_type": "clip"})
    assert "preprocessor_config.json: no such file" in refused(f"clip:{tmp_path}")
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS)
    assert "holds no weights; copy model.safetensors or pytorch_model.bin" in refused(f"clip:{tmp_path}")


def test_a_folder_of_another_kind_is_named(tmp_path):
    files.write_json(tmp_path / "config.json", {"model_type": "siglip"})
    assert f"of type siglip, not of clip; give siglip:{tmp_path}" in refused(f"clip:{tmp_path}")
    files.write_json(tmp_path / "config.json", {"model_type": "bert"})
    assert "of type bert, not of clip; check the path" in refused(f"clip:{tmp_path}")
    files.write_json(tmp_path / "config.json", [])
    assert "of type None" in refused(f"clip:{tmp_path}")


def test_without_torch_it_says_what_to_install(tmp_path, monkeypatch):
    for name in ("torch", "transformers"):
        monkeypatch.setitem(sys.modules, name, None)  # as if they were not installed
    files.write_json(tmp_path / "config.json", {"model_type": "clip"})
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "pip install 'tdsm_jax[clip]'" in refused(f"clip:{tmp_path}")


def test_damaged_weights_are_refused(tmp_path):
    saved("clip", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    assert f"{tmp_path}: cannot be read as clip (" in refused(f"clip:{tmp_path}")


def test_weights_that_would_be_random_are_refused(tmp_path):
    import safetensors.numpy

    saved("clip", tmp_path)
    path = tmp_path / "model.safetensors"
    arrays = safetensors.numpy.load_file(path)
    del arrays["visual_projection.weight"]
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    assert "its weights lack visual_projection.weight (1 in all)" in refused(f"clip:{tmp_path}")


def test_a_pickle_that_would_run_something_is_refused(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    saved("clip", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"visual_projection.weight": Touch(tmp_path / "stolen")}, tmp_path / "pytorch_model.bin")
    assert "cannot be read as clip" in refused(f"clip:{tmp_path}")
    assert not (tmp_path / "stolen").exists()


class Touch:
    """Makes a file where it is unpickled."""

    def __init__(self, path):
        self._path = path

    def __reduce__(self):
        return open, (str(self._path), "w")


def test_images_that_the_model_cannot_take_are_said_at_once(tmp_path):
    saved("clip", tmp_path)
    files.write_json(tmp_path / "preprocessor_config.json", SETTINGS | {"crop_size": 48})
    assert "takes no images of 48 pixels" in refused(f"clip:{tmp_path}")


def test_code_beside_the_weights_is_not_run(tmp_path):
    saved("clip", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    files.write_json(tmp_path / "config.json", config)
    (tmp_path / "modeling_own.py").write_text(f"open({str(tmp_path / 'stolen')!r}, 'w')")
    open_extractor(f"clip:{tmp_path}", data_mesh())
    assert not (tmp_path / "stolen").exists()
