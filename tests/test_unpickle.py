"""The reader of official snapshots: everything real torch writes, nothing that a hostile file asks for."""

import os
import pathlib
import pickle
import random
import re
import struct
import tracemalloc
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from pickle_writer import (
    Again,
    Built,
    Call,
    Global,
    Kept,
    Persistent,
    Raw,
    inline,
    legacy,
    pickled,
    storage_id,
    tensor,
    zipped,
)
from tdsm_jax.errors import UserError
from tdsm_jax.interop.unpickle import Record, read_snapshot, state_dict

FIXTURES = pathlib.Path(__file__).parent / "fixtures"
SIX = np.arange(6, dtype=np.float32)
CONV = Global("torch.nn.modules.conv", "Conv2d")
PARAMETER = Global("torch._utils", "_rebuild_parameter")
PERSISTENT_OBJECT = Global("torch_utils.persistence", "_reconstruct_persistent_obj")


@pytest.fixture
def read(tmp_path):
    """Returns a reader of a file's content."""

    def read_content(content):
        (tmp_path / "net.pkl").write_bytes(content)
        return read_snapshot(tmp_path / "net.pkl")

    return read_content


@pytest.fixture
def refuse(read):
    """Returns a check that a content ends in one line naming the file, and in little memory."""

    def check(content, match):
        tracemalloc.start()
        try:
            with pytest.raises(UserError, match=match) as caught:
                read(content)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert re.fullmatch(r"\S+net\.pkl: [ -~]{1,600}", str(caught.value))
        assert peak < 4 * len(content) + (1 << 20)

    return check


def network(parameters=None, modules=None):
    state = dict(_parameters=parameters or {}, _buffers={}, _modules=modules or {})
    return Built(Call(CONV, ()), state)


def six(kind="FloatStorage", key="0", length=6):
    return storage_id(kind, key, length)


def inline_six():
    return inline(legacy(six(), {"0": (6, SIX.tobytes())}))


# Files of the real torch.


def expected(name):
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return dict(arrays)


def assert_same_state(arrays, name):
    assert list(arrays) == list(expected(name))
    for key, array in expected(name).items():
        assert not arrays[key].flags.writeable
        assert arrays[key].dtype == (jnp.bfloat16 if key.startswith("brain") else array.dtype)
        np.testing.assert_array_equal(arrays[key].astype(array.dtype), array, err_msg=key, strict=True)


def test_a_snapshot_gives_its_networks_by_official_names():
    snapshot = read_snapshot(FIXTURES / "snapshot.pkl")
    assert list(snapshot) == ["ema", "loss_fn", "augment_pipe", "dataset_kwargs"]
    assert_same_state(state_dict(snapshot["ema"]), "net")
    assert_same_state(state_dict(snapshot["loss_fn"].state["classifier"]), "classifier")
    assert snapshot["dataset_kwargs"] == {"path": "x.zip", "use_labels": True}
    assert snapshot["augment_pipe"] is None


def test_a_persistent_object_is_a_record_with_its_source_and_attributes():
    snapshot = read_snapshot(FIXTURES / "snapshot.pkl")
    net, loss = snapshot["ema"], snapshot["loss_fn"]
    assert (net.module, net.name, loss.name) == ("", "TinyNet", "NoisyLoss")
    assert "was executed" in net.source
    assert net.state["sigma_max"] == float("inf")
    assert loss.state["P_mean"] == -1.2
    np.testing.assert_allclose(loss.state["transition"].sum(1), 1.0, rtol=1e-6)
    inner = loss.state["classifier"]
    assert (inner.module, inner.name, inner.source) == ("torch.nn.modules.container", "Sequential", None)


@pytest.mark.parametrize("file", ["snapshot.pkl", "training_state.pt"])
def test_constructor_arguments_are_plain_values(file):
    content = read_snapshot(FIXTURES / file)
    arguments = (content.get("ema") or content["net"]).state["_init_kwargs"]
    assert arguments["shape"] == (3, 4)
    assert arguments["device"] == "cuda:0"
    assert arguments["dtype"] == np.dtype(np.float32)
    assert arguments["scalar"] == 0.5 and isinstance(arguments["scalar"], np.float64)
    table = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(arguments["table"], table.astype(np.int32), strict=True)
    np.testing.assert_array_equal(arguments["fortran"], table.astype(np.float64), strict=True)
    np.testing.assert_array_equal(arguments["swapped"], [0, 1, 2])
    assert arguments["flags"] == {"a", "b"}
    assert arguments["nested"] == {"mult": [1, 2], "name": "x"}


def test_a_training_state_gives_the_raw_network():
    state = read_snapshot(FIXTURES / "training_state.pt")
    assert_same_state(state_dict(state["net"]), "net")
    assert state["optimizer_state"]["param_groups"][0]["betas"] == (0.9, 0.999)


def test_saved_state_dicts_are_dicts_of_arrays():
    assert_same_state(read_snapshot(FIXTURES / "weights.pt"), "net")
    saved = read_snapshot(FIXTURES / "legacy.pt")
    assert_same_state(saved["weights"], "classifier")
    assert_same_state(state_dict(saved["module"]), "classifier")


def test_tied_parameters_are_one_array():
    arrays = state_dict(read_snapshot(FIXTURES / "snapshot.pkl")["ema"])
    assert arrays["head.0.weight"] is arrays["head.2.weight"]


@pytest.mark.parametrize("file", ["snapshot.pkl", "training_state.pt", "legacy.pt"])
def test_a_cut_file_is_one_clear_error(file, tmp_path):
    content = (FIXTURES / file).read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(content)
    for length in [len(content) - 1, *reversed(range(0, len(content), 10))]:
        os.truncate(cut, length)
        with pytest.raises(UserError, match="cut: cannot be read: .*; download or save it again") as caught:
            read_snapshot(cut)
        assert "malformed" not in str(caught.value)  # foreseen, not an exception of some depth


@pytest.mark.parametrize("file", ["snapshot.pkl", "training_state.pt", "legacy.pt"])
def test_a_damaged_file_is_read_or_refused(file, read):
    content, rng = (FIXTURES / file).read_bytes(), random.Random(0)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(content))] = rng.randrange(256)
        try:
            read(damaged)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_damaged_storage_in_an_archive_is_noticed(refuse):
    content = bytearray(zipped(tensor(six(), (6,), (1,)), {"data/0": SIX.tobytes()}))
    content[content.index(SIX.tobytes()) + 9] ^= 1
    refuse(content, "data/0 is damaged")


# Forms that the real torch writes at other times.


@pytest.mark.parametrize("container", ["legacy", "zip"])
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("FloatStorage", np.float32),
        ("DoubleStorage", np.float64),
        ("HalfStorage", np.float16),
        ("BFloat16Storage", jnp.bfloat16),
        ("LongStorage", np.int64),
        ("IntStorage", np.int32),
        ("ShortStorage", np.int16),
        ("CharStorage", np.int8),
        ("ByteStorage", np.uint8),
        ("BoolStorage", np.bool_),
    ],
)
def test_inline_storages_of_either_form(container, kind, dtype, read):
    values = np.array([[0, 1], [1, 1], [0, 0]]).astype(dtype)
    storage = six(kind)
    blob = (
        legacy(storage, {"0": (6, values.tobytes())})
        if container == "legacy"
        else zipped(storage, {"data/0": values.tobytes()})
    )
    parameter = Call(PARAMETER, (tensor(inline(blob), (3, 2), (2, 1)), True, {}))
    np.testing.assert_array_equal(read(pickled(parameter)), values, strict=True)


def test_strides_and_offsets_choose_the_elements(read):
    grid = np.arange(24, dtype=np.float32)
    storage = six(length=24)
    views = [
        tensor(storage, (3, 2), (1, 12), 2),
        tensor(storage, (), (), 23),
        tensor(storage, (0, 5), (5, 1), 24),
        tensor(storage, (2, 3), (0, 1), 0),
        tensor(storage_id("FloatStorage", "0", 24, ("0v", 4, 6)), (6,), (1,)),
    ]
    by_hand = [
        np.array([[2, 14], [3, 15], [4, 16]]),
        np.array(23),
        np.empty((0, 5)),
        np.array([[0, 1, 2], [0, 1, 2]]),
        np.arange(4, 10),
    ]
    for view, wanted in zip(read(legacy(views, {"0": (24, grid.tobytes())})), by_hand, strict=True):
        np.testing.assert_array_equal(view, wanted.astype(np.float32), strict=True)


def test_untyped_storages_take_the_dtype_of_the_tensor(read):
    storage = Persistent(("storage", Global("torch.storage", "UntypedStorage"), "0", "cpu", 12))
    rebuild = Global("torch._utils", "_rebuild_tensor_v3")
    value = Call(rebuild, (storage, 1, (2,), (2,), False, {}, Global("torch", "uint16")))
    values = np.arange(6, dtype=np.uint16)
    np.testing.assert_array_equal(read(zipped(value, {"data/0": values.tobytes()})), values[1:5:2], strict=True)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_numpy_arrays_of_each_protocol(protocol, read):
    values = [1, -1, 300, 1 << 40, -(1 << 70), 0.1, None, True, "Snöw", "x" * 300, (), (1,), (1, 2), (1, 2, 3, 4), {5}]
    values += [frozenset("a"), {"a": {1: [2]}}]
    arrays = [np.arange(3), np.float16(0.5), np.zeros((2, 0)), np.array(True), np.arange(6.0).reshape(2, 3).T]
    again, again_arrays = read(pickle.dumps((values, arrays), protocol))
    assert again == values
    for got, wanted in zip(again_arrays, arrays, strict=True):
        np.testing.assert_array_equal(got, wanted, strict=True)


def test_bytes_are_views_that_cannot_be_written(read):
    for protocol in (2, 4):
        empty, some = read(pickle.dumps([b"", b"\xff\x00"], protocol))
        assert (bytes(empty), bytes(some), some.readonly) == (b"", b"\xff\x00", True)


def test_an_object_of_the_oldest_form_is_a_record(read):
    bare = Call(Global("copyreg", "_reconstructor"), (CONV, Global("builtins", "object"), None))
    record = read(pickled(Built(bare, {"bias": None})))
    assert (record.module, record.name, record.state) == (CONV.module, CONV.name, {"bias": None})


def test_any_class_name_is_a_passive_record(read):
    meta = dict(type="class", version=6, module_src="import os", class_name="os", state=None)
    record = read(pickled(Call(PERSISTENT_OBJECT, (meta,))))
    assert isinstance(record, Record)
    assert (record.name, record.source, record.state) == ("os", "import os", {})


# State dicts.


def test_only_a_network_has_a_state_dict(read):
    for value in (3, {}, Call(CONV, ()), network({"w": 5}), network(modules={"a": {}}), network({"w" * 600: None})):
        with pytest.raises(UserError):
            state_dict(read(pickled(value)))


def test_modules_that_contain_each_other_end(read):
    module = Kept(0, Call(CONV, ()))
    loop = Built(module, dict(_parameters={}, _buffers={}, _modules={"a": Again(0)}))
    with pytest.raises(UserError, match="contain each other"):
        state_dict(read(pickled(loop)))


def test_shared_modules_cannot_multiply_without_end(read):
    module = Kept(0, network())
    for level in range(1, 40):  # each holds the one below twice
        module = Kept(level, network(modules={"a": module, "b": Again(level - 1)}))
    with pytest.raises(UserError, match="more than 100000 entries"):
        state_dict(read(pickled(module)))


# Hostile files.


HARMFUL = [
    ("os", "system"),
    ("posix", "system"),
    ("nt", "system"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("subprocess", "Popen"),
    ("pickle", "loads"),
    ("torch", "load"),
    ("torch.hub", "load"),
    ("torch.storage", "_load_from_bytes.__globals__"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch.nn.modules.conv", "os.system"),
    ("torch.nn.modules.conv", "Conv2d.__init__"),
    ("torch.nn.modules...os", "system"),
    ("torch.nn.modules", "Linear"),
    ("collections", "OrderedDict.__init__"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "fromfile"),
    ("tdsm_jax.interop.unpickle", "read_snapshot"),
    ("", ""),
    ("line\nbreak\x1b[31m" * 99, "x" * 999),
]


@pytest.mark.parametrize(("module", "name"), HARMFUL)
@pytest.mark.parametrize("form", ["called", "named", "text", "inline", "zip", "legacy", "state"])
def test_any_other_name_is_refused_and_nothing_runs(module, name, form, refuse, tmp_path):
    canary = tmp_path / "canary"
    harm = Call(Global(module, name), (f"open({str(canary)!r}, 'w')" if "eval" in name else f"touch {canary}",))
    if form == "text":
        if "\n" in module:
            pytest.skip("the text form has no line breaks")
        harm = Call(Raw(b"c%b\n%b\n" % (module.encode(), name.encode())), harm.arguments)
    content = {
        "called": lambda: pickled(harm),
        "text": lambda: pickled(harm),
        "named": lambda: pickled([harm.function]),
        "inline": lambda: pickled(inline(pickled(harm))),
        "zip": lambda: zipped(harm, {}),
        "legacy": lambda: legacy(harm, {}),
        "state": lambda: pickled(Built(Call(CONV, ()), {"_modules": {"a": harm}})),
    }[form]()
    refuse(content, "ends in the middle" if form == "text" and len(name) > 500 else "it names .*nothing was executed")
    assert not canary.exists()


def test_the_canary_sings_when_pickle_reads_it(tmp_path):
    pickle.loads(pickled(Call(Global("os", "system"), (f"touch {tmp_path / 'canary'}",))))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (inline(pickled([1, 2])), "plain pickle where a torch container belongs"),
        (inline(pickle.dumps(pickle.dumps([1]))), "plain pickle where a torch container belongs"),
        (inline(legacy(inline_six(), {})), "it names torch.storage._load_from_bytes"),
        (inline(zipped(inline_six(), {})), "it names torch.storage._load_from_bytes"),
        (inline(legacy({"a": 1}, {})), "a dict is in the place of a storage"),
        (inline(b""), "ends in the middle"),
        (Call(Global("torch.storage", "_load_from_bytes"), ("text",)), "a storage is a str"),
        (Call(Global("torch.storage", "_load_from_bytes"), ()), "malformed"),
        (Persistent(("storage", Global("torch", "FloatStorage"), "0", "cpu", 6)), "outside of a torch container"),
        (Call("os.system", ("true",)), "it calls a str"),
        (Call(Global("torch", "float32"), ()), "it calls a Float32DType"),
        (Call(Global("numpy", "ndarray"), ((1 << 40,),)), "it calls a str"),
        (Call(CONV, [1]), "arguments of a call are no tuple"),
        (Call(CONV, (1,)), "malformed"),
        (Built(CONV, {"call": None}), "gives a state to a _Function"),
        (Built(inline_six(), {"dtype": None}), "gives a state to a ndarray"),
        (Built(Call(CONV, ()), ({}, {"name": "x"})), "gives a state to a Record"),
        (Call(PARAMETER, (5, True, {})), "a parameter is a int"),
        (Call(PERSISTENT_OBJECT, ({"class_name": "Net"},)), "malformed"),
        (Call(PERSISTENT_OBJECT, (dict(class_name="a b", module_src="", state={}),)), "no proper class name"),
        (Call(PERSISTENT_OBJECT, (dict(class_name="Net", module_src="", state=[]),)), "no proper class name"),
        ({(1, 2): 3}, "a tuple is no key"),
        (Raw(b"}]Ns"), "a list is no key"),
        (Raw(b"\x82\x01"), "82 at 2 is no instruction"),  # the extension registry
        (Raw(b"\x83\x01\x00"), "83 at 2 is no instruction"),
        (Raw(b"(ios\nsystem\n"), "69 at 3 is no instruction"),
        (Raw(b"Ptext\n"), "50 at 2 is no instruction"),
        (Raw(b"\x97"), "97 at 2 is no instruction"),  # a buffer from elsewhere
        (Raw(b"Va\nVb\n\x93"), "56 at 2 is no instruction"),
        (Raw(b"K\x01K\x02\x93"), "a global has no name"),
        (Raw(b"\x80\x09"), "pickle protocol 9"),
        (Raw(b"Nh\x07"), "malformed"),  # nothing in the memo
        (Raw(b"(t0"), "malformed"),  # nothing on the stack
        (Raw(b"N\x86"), "a tuple lacks items"),
        (Raw(b"Na"), "malformed"),
        (Raw(b"NNa"), "appends to a NoneType"),
        (Raw(b"(K\x01K\x02tNa"), "appends to a tuple"),
        (Raw(b"NNNs"), "sets items of a NoneType"),
        (Raw(b"}(Nu"), "sets items of a dict"),
        (Raw(b"\x8c\x02\xff\xff"), "malformed"),  # no UTF-8
        (Raw(b"}(h"), "malformed"),
    ],
)
def test_what_no_snapshot_says_is_refused(value, match, refuse):
    refuse(pickled(value), match)


HUGE = 1 << 40


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x8e" + struct.pack("<Q", HUGE),  # bytes
        b"\x96" + struct.pack("<Q", HUGE),  # a byte array
        b"\x8d" + struct.pack("<Q", (1 << 64) - 1),  # text
        b"B" + struct.pack("<I", (1 << 32) - 1),
        b"X" + struct.pack("<I", (1 << 31) - 1),
        b"\x95" + struct.pack("<Q", HUGE),  # a frame
        b"\x8b" + struct.pack("<I", (1 << 31) - 1),  # an integer
        b"Nr" + struct.pack("<I", (1 << 32) - 1) + b"h\x00",  # the memo
        b"I" + b"9" * 10_000 + b"\n",
    ],
    ids=lambda opcodes: opcodes[:2].hex(),
)
def test_huge_sizes_in_a_pickle_are_not_believed(opcodes, refuse):
    refuse(pickled(Raw(opcodes)), "cannot be read")


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (tensor(six(), (7,), (1,)), "does not fit its storage of 6"),
        (tensor(six(), (6,), (1,), 1), "does not fit"),
        (tensor(six(), (2,), (HUGE,)), "does not fit"),
        (tensor(six(), (HUGE,), (0,)), "does not fit"),
        (tensor(six(), (HUGE, HUGE), (0, 0)), "does not fit"),
        (tensor(six(), (1 << 300,), (0,)), "no proper offset, size and strides"),
        (tensor(six(), (2,), (-1,), 3), "no proper offset"),
        (tensor(six(), (2,), (1,), -1), "no proper offset"),
        (tensor(six(), (2,), (1.0,)), "no proper offset"),
        (tensor(six(), (2, 3), (1,)), "no proper offset"),
        (tensor(six(), (1,) * 99, (1,) * 99), "no proper offset"),
        (tensor(six(), [6], (1,)), "no proper offset"),
        (tensor(six(), (0, HUGE, HUGE, HUGE), (1, 1, 1, 1)), "malformed"),
        (tensor(six(), (6,), (1,), metadata={"conj": True}), "conjugated or negated"),
        (tensor("text", (6,), (1,)), "has a str for a storage"),
        (tensor(tensor(six(), (2, 3), (3, 1)), (6,), (1,)), "has a ndarray for a storage"),
        (tensor(tensor(six(), (60_000,), (0,)), (60_000,), (1,)), "has a ndarray for a storage"),
        (tensor(six(length=HUGE), (6,), (1,)), "declare"),
        (tensor(six(length=7), (6,), (1,)), "declared"),
        (tensor(six(length=-1), (6,), (1,)), "persistent id"),
        (tensor(six("DoubleStorage"), (6,), (1,)), "declared|middle of a storage"),
        (tensor(six("QUInt8Storage"), (6,), (1,)), "it names torch.QUInt8Storage"),
        (tensor(six(key="1"), (6,), (1,)), "declare|lacks data/1"),
        ([six(), six("IntStorage")], "declared twice"),
        (Persistent("0"), "persistent id"),
        (Persistent(("storage", "FloatStorage", "0", "cpu", 6)), "persistent id"),
        (Persistent(("tensor", Global("torch", "FloatStorage"), "0", "cpu", 6)), "persistent id"),
    ],
)
@pytest.mark.parametrize("container", ["legacy", "zip"])
def test_wrong_storages_and_tensors_are_refused(value, match, container, refuse):
    content = SIX.tobytes()
    made = legacy(value, {"0": (6, content)}) if container == "legacy" else zipped(value, {"data/0": content})
    refuse(made, match)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (legacy(six(), {"0": (6, SIX.tobytes()[:-1])}), "ends in the middle of a storage"),
        (legacy(six(), {"0": (5, SIX.tobytes())}), "not of the declared length"),
        (legacy(six(), {"0": (HUGE, SIX.tobytes())}), "not of the declared length"),
        (legacy(six(), {"0": (6, SIX.tobytes())}, keys=[]), "declares are not those"),
        (legacy(six(), {"0": (6, SIX.tobytes())}, keys=["0", "0"]), "declares are not those"),
        (legacy(six(), {"0": (6, SIX.tobytes())}, keys=[0]), "declares are not those"),
        (legacy(1, {}, keys=5), "malformed"),
        (legacy(1, {}, version=1002), "version 1002"),
        (legacy(1, {}, platform={"little_endian": False}), "big-endian"),
        (legacy(1, {}, platform=5), "malformed"),
        (legacy(storage_id("FloatStorage", "0", 6, ("v", 4, 3)), {"0": (6, SIX.tobytes())}), "does not fit"),
        (zipped(six(), {"data/0": SIX.tobytes()}, zipfile.ZIP_DEFLATED), "data.pkl is compressed"),
        (zipped(bytes(1 << 20), {}, zipfile.ZIP_DEFLATED), "compressed"),
        (zipped(six(), {"data/0": SIX.tobytes(), "byteorder": b"big"}), "big-endian"),
        (zipped(1, {"more/data.pkl": b""}), "not one of torch"),
        (zipped(1, {}).replace(b"data.pkl", b"mega.pkl"), "not one of torch"),
        (b"PK\x03\x04" + bytes(100), "no whole zip archive"),
        (b"PK\x05\x06" + bytes(18), "neither a pickle nor"),
        (b"", "it is empty"),
        (b"\x89PNG\r\n", "neither a pickle nor"),
        (b"(lp0\n.", "neither a pickle nor"),
        (b"\x80", "ends in the middle"),
    ],
)
def test_wrong_containers_are_refused(content, match, refuse):
    refuse(content, match)


def patched_directory(content, field, value):
    """The entry of data/0 in the table of contents with another value in its 32-bit field."""
    entry = content.rindex(b"archive/data/0") - 46
    return content[: entry + field] + struct.pack("<I", value) + content[entry + field + 4 :]


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({24: 1 << 31}, "compressed"),
        ({20: 1 << 31, 24: 1 << 31}, "more data than it holds"),
        ({42: 1 << 30}, "wrong about data/0"),
        ({42: 3}, "wrong about data/0"),
        ({20: 23, 24: 23}, "damaged"),
    ],
)
def test_a_false_table_of_contents_is_refused(fields, match, refuse):
    content = zipped(tensor(six(), (6,), (1,)), {"data/0": SIX.tobytes()})
    for field, value in fields.items():
        content = patched_directory(content, field, value)
    refuse(content, match)


def test_a_huge_table_of_contents_is_not_read(refuse):
    size = 5 << 20
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, size, 4, 0)
    refuse(b"PK\x03\x04" + bytes(size) + end, "far larger than any network takes")


def test_records_that_overlap_cannot_be_read_again_and_again(refuse):
    content = bytes(1 << 16)
    tensors = [tensor(storage_id("ByteStorage", str(key), 1 << 16), (1,), (1,)) for key in range(9)]
    archive = zipped(tensors, {f"data/{key}": content if key == 0 else b"" for key in range(9)})
    place = archive.index(b"archive/data/0") - 30
    for key in range(1, 9):
        entry = archive.rindex(b"archive/data/%d" % key) - 46
        fields = struct.pack("<III", zipfile.crc32(content), 1 << 16, 1 << 16)
        archive = archive[: entry + 16] + fields + archive[entry + 28 :]
        archive = archive[: entry + 42] + struct.pack("<I", place) + archive[entry + 46 :]
    refuse(archive, "more data than it holds")


def test_a_storage_cannot_be_copied_again_and_again(refuse):
    blob = legacy(six("ByteStorage", length=1 << 16), {"0": (1 << 16, bytes(1 << 16))})
    refuse(pickled([inline(Kept(0, blob)), *[inline(Again(0))] * 9]), "more data than it holds")


def test_text_cannot_be_copied_again_and_again(refuse):
    encode = Global("_codecs", "encode")
    calls = [Call(encode, (Kept(0, "x" * 9999), "latin1")), *[Call(encode, (Again(0), "latin1"))] * 20]
    refuse(pickled(calls), "more data than it holds")


def test_sets_cannot_be_copied_again_and_again(read):
    make = Global("builtins", "set")
    calls = [Call(make, (Kept(0, [1] * 20_000),)), *[Call(make, (Again(0),))] * 60]
    with pytest.raises(UserError, match="far more instructions"):
        read(pickled(calls))


def test_a_state_cannot_be_given_again_and_again(read):
    """Each of 2000 records would hold the 2000 entries of the one state that they share: 200 MB."""
    state = Kept(0, dict.fromkeys(map(str, range(2000))))
    made = Call(Kept(1, CONV), ())
    records = [Built(made, state), *[Built(Call(Again(1), ()), Again(0))] * 2000]
    content = pickled(records)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="far more instructions"):
            read(content)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(content) < 100_000 and peak < 80e6


def test_what_is_no_text_is_not_spelled_out(refuse):
    """Each list holds the one before twice: written out, the last is of 2**40 characters."""
    lists = Kept(0, [])
    for level in range(1, 40):
        lists = Kept(level, [lists, Again(level - 1)])
    refuse(pickled(Call(Global("numpy", "dtype"), (lists, False, True))), "dtype a list, which is not one of numbers")
    refuse(legacy(1, {}, version=lists), "of version a list")
    refuse(legacy(1, {}, keys=[lists, lists]), "declares are not those")


@pytest.mark.parametrize(
    ("opcodes", "match"),
    [
        (b"]" * 5_000 + b"a" * 4_999, "nest deeper"),
        (b")" + b"\x85" * 5_000, "nest deeper"),
        (b"}K\x01" * 5_000 + b"N" + b"s" * 5_000, "nest deeper"),
        (b"(" * 5_000, "malformed"),
    ],
)
def test_deep_nesting_is_refused(opcodes, match, read):
    with pytest.raises(UserError, match=match):
        read(pickled(Raw(opcodes)))


def test_depth_counts_the_longest_way(refuse):
    links = [Kept(0, [1]), *(Kept(i, [Again(i - 1)]) for i in range(1, 700))]  # each is near the outermost list too
    refuse(pickled(links), "nest deeper")


def test_a_list_within_itself_is_read(read):
    loop = read(pickled(Raw(b"]\x94h\x00a")))
    assert loop[0] is loop


def test_endless_instructions_are_refused(read):
    with pytest.raises(UserError, match="far more instructions"):
        read(pickled(Raw(b"N0" * 600_000)))


@pytest.mark.parametrize(
    ("dtype", "content", "match"),
    [
        (("O8", False, True), bytes(8), "dtype O8, which is not one of numbers"),
        (("V8", False, True), bytes(8), "not one of numbers"),
        ((["f8"], False, True), bytes(8), "not one of numbers"),
        (("f8", False, True), bytes(7), "has 7 bytes"),
        (("f8", False, True), [1.0], "no proper shape"),
    ],
)
def test_numpy_arrays_other_than_numbers_are_refused(dtype, content, match, refuse):
    core = "numpy.core.multiarray"
    made = Call(Global(core, "_reconstruct"), (Global("numpy", "ndarray"), (0,), b"b"))
    dtype = Built(Call(Global("numpy", "dtype"), dtype), (3, "<", None, None, None, -1, -1, 0))
    refuse(pickled(Built(made, (1, (1,), dtype, False, content))), match)
    refuse(pickled(Call(Global(core, "scalar"), (dtype, content))), match)


def test_numpy_sizes_are_not_believed(refuse):
    made = Call(Global("numpy._core.multiarray", "_reconstruct"), (Global("numpy", "ndarray"), (HUGE,), b"b"))
    dtype = Built(Call(Global("numpy", "dtype"), ("f8", False, True)), (3, "<", None, None, None, -1, -1, 0))
    refuse(pickled(Built(made, (1, (HUGE,), dtype, False, b""))), "has 0 bytes")


def test_a_path_that_is_no_file_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.pkl: no such file"):
        read_snapshot(tmp_path / "absent.pkl")
    with pytest.raises(UserError, match="not a file"):
        read_snapshot(tmp_path)
    if os.geteuid():  # root reads everything
        (tmp_path / "locked.pkl").touch(mode=0)
        with pytest.raises(UserError, match="locked.pkl: cannot be read"):
            read_snapshot(tmp_path / "locked.pkl")
