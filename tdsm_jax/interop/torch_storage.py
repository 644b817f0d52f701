"""Torch's storages, tensors and containers: which bytes of a file a tensor is, and never more than there are.

A storage is a flat array. `torch.save` keeps storages outside of the pickle, which names them by persistent ids: as
records of an uncompressed zip archive, or (the legacy form) one after the other behind the pickle.
"""

import dataclasses
import io
import math
import struct
import zipfile
import zlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from tdsm_jax.errors import printable
from tdsm_jax.interop.budget import Budget, Unreadable
from tdsm_jax.interop.pickle_machine import PickleMachine

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
ZIP_MAGIC = b"PK\x03\x04"
LARGEST_DIRECTORY = 4 << 20  # bytes of a zip's table of contents: some 40 000 records, each becoming an object
LARGEST_EXPANDED = 1 << 16  # elements of a tensor that repeats those of a smaller storage


@dataclasses.dataclass(frozen=True)
class StorageType:
    """Stands for a storage class, such as torch.FloatStorage."""

    dtype: np.dtype


_STORAGE_DTYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
    "UntypedStorage": np.uint8,
}
STORAGE_TYPES = {("torch", name): StorageType(np.dtype(dtype)) for name, dtype in _STORAGE_DTYPES.items()}
STORAGE_TYPES["torch.storage", "UntypedStorage"] = StorageType(np.dtype(np.uint8))


def rebuild_tensor(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool = False,
    hooks: Any = None,
    metadata: Any = None,
) -> np.ndarray:
    """Returns the read-only view of `storage` [n] with shape `size`; offset and strides count elements.

    Raises `Unreadable` if it reaches beyond the storage, or repeats its elements into something large.
    """
    # A view that repeats elements is longer than its memory: as a storage it would let others reach beyond.
    if not isinstance(storage, np.ndarray) or storage.ndim != 1 or not storage.flags.c_contiguous:
        raise Unreadable(f"a tensor has a {type(storage).__name__} for a storage")
    if not (is_shape(size) and is_shape(stride) and len(size) == len(stride) and is_shape((offset,))):
        raise Unreadable("a tensor has no proper offset, size and strides")
    if metadata:
        raise Unreadable("a tensor is a conjugated or negated view, which no network has")
    if 0 in size:
        offset, stride = 0, (0,) * len(size)
    else:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= len(storage) or math.prod(size) > max(len(storage), LARGEST_EXPANDED):
            raise Unreadable(f"a tensor of shape {size} does not fit its storage of {len(storage)} elements")
    strides = [step * storage.itemsize for step in stride]
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def rebuild_tensor_v3(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any,
    hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> np.ndarray:
    """As `rebuild_tensor`, over the bytes of a storage whose type does not tell the `dtype`."""
    if not isinstance(storage, np.ndarray) or storage.dtype != np.uint8 or not isinstance(dtype, np.dtype):
        raise Unreadable("a tensor has neither an untyped storage nor a dtype")
    return rebuild_tensor(storage.view(dtype), offset, size, stride, requires_grad, hooks, metadata)


def is_shape(value: Any) -> bool:
    """Tells whether `value` is a tuple of sizes that NumPy can take."""
    return type(value) is tuple and len(value) <= 32 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def is_zip(data: memoryview) -> bool:
    """Tells whether `data` starts as a zip archive does."""
    return data[:4] == ZIP_MAGIC


def load_storage(budget: Budget, data: memoryview) -> np.ndarray:
    """Returns the one storage that `data`, what `torch.save` writes, holds; anything else in it is refused."""
    if type(data) is not memoryview:
        raise Unreadable(f"a storage is a {type(data).__name__}, not bytes")
    storage = read_container(data, budget, _StorageMachine)
    if not isinstance(storage, np.ndarray):
        raise Unreadable(f"a {type(storage).__name__} is in the place of a storage")
    return storage


class _StorageMachine(PickleMachine):
    """Knows the storage classes and calls nothing."""

    def find_global(self, module: str, name: str) -> Any:
        return STORAGE_TYPES.get((module, name)) or super().find_global(module, name)


def read_container(data: memoryview, budget: Budget, machine: type[PickleMachine]) -> Any:
    """Returns the object that `torch.save` wrote into `data`, its pickle read by `machine`."""
    return _read_zip(data, budget, machine) if is_zip(data) else _read_legacy(data, budget, machine)


def _read_zip(data: memoryview, budget: Budget, machine: type[PickleMachine]) -> Any:
    archive = _ZipRecords(data, budget)
    storages: dict[str, np.ndarray] = {}

    def persistent_load(persistent_id: Any) -> np.ndarray:
        dtype, key, numel, _ = _parsed(persistent_id)
        if key not in storages:
            record = archive.read(f"data/{key}")
            if len(record) != numel * dtype.itemsize:
                raise Unreadable(f"storage {printable(key)} has {len(record)} bytes, {numel} x {dtype} are declared")
            storages[key] = np.ndarray((numel,), dtype, record)
        return _same(storages[key], key, dtype, numel)

    if "byteorder" in archive and archive.read("byteorder") != b"little":
        raise Unreadable("it was written on a big-endian machine, which is not supported")
    return machine(archive.read("data.pkl"), budget, persistent_load=persistent_load).run()


def _read_legacy(data: memoryview, budget: Budget, machine: type[PickleMachine]) -> Any:
    storages: dict[str, np.ndarray] = {}

    def persistent_load(persistent_id: Any) -> Any:
        if type(persistent_id) is tuple and len(persistent_id) == 4 and persistent_id[0] == "module":
            return persistent_id[1]  # a class, beside its source text
        dtype, key, numel, view = _parsed(persistent_id)
        if key not in storages:  # its bytes follow the pickle, which makes tensors of them before
            budget.spend_data(numel * dtype.itemsize)
            storages[key] = np.empty(numel, dtype)
        storage = _same(storages[key], key, dtype, numel)
        if view is None:
            return storage
        _, offset, length = view
        return rebuild_tensor(storage, offset, (length,), (1,))

    position = 0
    parts = []
    for _ in ("magic number", "version", "platform", "object", "keys"):
        reader = machine(data, budget, position, persistent_load)
        parts.append(reader.run())
        position = reader.position
        if parts[0] != LEGACY_MAGIC:
            raise Unreadable("it is a plain pickle where a torch container belongs")
    _, version, platform, value, keys = parts
    if version != LEGACY_VERSION or platform["little_endian"] is not True:
        said = printable(str(version)) if type(version) is int else f"a {type(version).__name__}"
        raise Unreadable(f"it is of version {said} or of a big-endian machine, which is not supported")
    _fill(storages, keys, data, position)
    return value


def _fill(storages: dict[str, np.ndarray], keys: list[str], data: memoryview, position: int) -> None:
    """Copies into each storage what follows at `position`, in the order of `keys`: its length int64, its elements."""
    if not all(type(key) is str for key in keys) or sorted(keys) != sorted(storages):
        raise Unreadable("the storages that it declares are not those that it holds")
    for key in keys:
        storage = storages[key]
        header, start = data[position : position + 8], position + 8
        position = start + storage.nbytes
        if len(header) == 8 and int.from_bytes(header, "little") != len(storage):
            raise Unreadable(f"storage {printable(key)} is not of the declared length {len(storage)}")
        if position > len(data):
            raise Unreadable("it ends in the middle of a storage (a partial download?)")
        memoryview(storage.view(np.uint8))[:] = data[start:position]


def _parsed(persistent_id: Any) -> tuple[np.dtype, str, int, Any]:
    """Returns dtype, key, length and view of a storage's persistent id."""
    if type(persistent_id) is not tuple or len(persistent_id) not in (5, 6):
        raise Unreadable("a persistent id is not one of a storage")
    kind, storage_type, key, _location, numel, *view = persistent_id
    if not (kind == "storage" and isinstance(storage_type, StorageType) and type(key) is str and is_shape((numel,))):
        raise Unreadable("a persistent id is not one of a storage")
    return storage_type.dtype, key, numel, view[0] if view else None


def _same(storage: np.ndarray, key: str, dtype: np.dtype, numel: int) -> np.ndarray:
    if storage.dtype != dtype or len(storage) != numel:
        raise Unreadable(f"storage {printable(key)} is declared twice, as {storage.dtype} and as {dtype}")
    return storage


class _ZipRecords:
    """The records of a torch archive by their names, as views."""

    def __init__(self, data: memoryview, budget: Budget):
        self._data = data
        self._budget = budget
        try:
            entries = zipfile.ZipFile(_ViewFile(data)).infolist()
        except (zipfile.BadZipFile, NotImplementedError, OSError, struct.error) as error:
            raise Unreadable(f"it is no whole zip archive ({printable(str(error))}; a partial download?)") from None
        folders = [entry.filename.removesuffix("data.pkl") for entry in entries if entry.filename.endswith("/data.pkl")]
        if len(folders) != 1:
            raise Unreadable("it is a zip archive, but not one of torch (no data.pkl)")
        self._entries = {entry.filename.removeprefix(folders[0]): entry for entry in entries}

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def read(self, name: str) -> memoryview:
        if name not in self._entries:
            raise Unreadable(f"the archive lacks {printable(name)}")
        entry = self._entries[name]
        if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size or entry.flag_bits & 1:
            raise Unreadable(f"{printable(name)} is compressed, which torch never does")
        self._budget.spend_data(entry.file_size)
        header = self._data[entry.header_offset : entry.header_offset + 30]
        if len(header) < 30 or header[:4] != ZIP_MAGIC:
            raise Unreadable(f"the archive's table of contents is wrong about {printable(name)}")
        start = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        record = self._data[start : start + entry.file_size]
        if len(record) != entry.file_size or zlib.crc32(record) != entry.CRC:
            raise Unreadable(f"{printable(name)} is damaged (its checksum is another)")
        return record


class _ViewFile(io.RawIOBase):
    """A buffer as a file; refuses to read much at once, as only a hostile table of contents makes `zipfile` do."""

    def __init__(self, data: memoryview):
        self._data = data
        self._position = 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if origin + offset < 0:
            raise OSError("a place before the start")
        self._position = origin + offset
        return self._position

    def read(self, count: int = -1) -> bytes:
        part = self._data[self._position :]
        part = part if count < 0 else part[:count]
        if len(part) > LARGEST_DIRECTORY:
            raise Unreadable("the archive's table of contents is far larger than any network takes")
        self._position += len(part)
        return bytes(part)
