"""Writes pickles and torch containers opcode by opcode, so that tests can say what no honest program would."""

import dataclasses
import io
import pickle
import struct
import zipfile
from typing import Any


@dataclasses.dataclass(frozen=True)
class Global:
    """A name in the file."""

    module: str
    name: str


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of a name."""

    function: Any
    arguments: tuple


@dataclasses.dataclass(frozen=True)
class Built:
    """An object that is given a state."""

    value: Any
    state: Any


@dataclasses.dataclass(frozen=True)
class Persistent:
    """A persistent id."""

    id: Any


@dataclasses.dataclass(frozen=True)
class Kept:
    """A value that `Again` refers to by its number."""

    number: int
    value: Any


@dataclasses.dataclass(frozen=True)
class Again:
    """What was kept by that number."""

    number: int


@dataclasses.dataclass(frozen=True)
class Raw:
    """Opcodes as they are."""

    opcodes: bytes


def pickled(value: Any) -> bytes:
    """Returns a whole pickle of `value`, made of plain values and of the classes above."""
    return b"\x80\x04" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    match value:
        case Raw(content):
            return content
        case Global(module, name):
            return opcodes(module) + opcodes(name) + pickle.STACK_GLOBAL
        case Call(function, arguments):
            return opcodes(function) + opcodes(arguments) + pickle.REDUCE
        case Built(value, state):
            return opcodes(value) + opcodes(state) + pickle.BUILD
        case Persistent(id):
            return opcodes(id) + pickle.BINPERSID
        case Kept(number, value):
            return opcodes(value) + pickle.LONG_BINPUT + struct.pack("<I", number)
        case Again(number):
            return pickle.LONG_BINGET + struct.pack("<I", number)
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
        case dict():
            items = b"".join(opcodes(part) for item in value.items() for part in item)
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case str():
            return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()
        case bytes():
            return pickle.BINBYTES + struct.pack("<I", len(value)) + value
        case _:  # a number or None, without the protocol before and the stop behind
            return pickle.dumps(value, protocol=3)[2:-1]


def storage_id(kind: str, key: str, length: int, *view: Any) -> Persistent:
    return Persistent(("storage", Global("torch", kind), key, "cpu", length, *view))


def tensor(storage: Any, size: tuple, stride: tuple, offset: int = 0, **changes: Any) -> Call:
    arguments = dict(storage=storage, offset=offset, size=size, stride=stride, grad=False, hooks={}) | changes
    return Call(Global("torch._utils", "_rebuild_tensor_v2"), tuple(arguments.values()))


def legacy(value: Any, storages: dict[str, tuple[int, bytes]], **changes: Any) -> bytes:
    """Returns a legacy container; `storages`: key -> declared length and bytes."""
    platform = dict(protocol_version=1001, little_endian=True, type_sizes={})
    parts = dict(magic=0x1950A86A20F9469CFC6C, version=1001, platform=platform, value=value, keys=list(storages))
    tail = b"".join(struct.pack("<q", length) + content for length, content in storages.values())
    return b"".join(pickled(part) for part in (parts | changes).values()) + tail


def zipped(value: Any, records: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns a zip container; `records`: name -> content, beside the pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled(value))
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def inline(container: bytes) -> Call:
    """A storage within a plain pickle."""
    return Call(Global("torch.storage", "_load_from_bytes"), (container,))
