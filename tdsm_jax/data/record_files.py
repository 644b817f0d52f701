"""Files of records by number, read without TensorFlow: TFRECORD and array_record.

A TFRECORD file is a row of records, each 8 bytes of length, 4 of its checksum, the content, and 4 of that one's
checksum, all little-endian; checksums are CRC-32C, rotated by 15 bits and shifted by a constant.
Source: https://www.tensorflow.org/tutorials/load_data/tfrecord
"""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence

import numpy as np

from tdsm_jax import files, paths
from tdsm_jax.errors import UserError

BATCH = 2048  # records: what is read and checked at a time
_HEADER, _FOOTER = 12, 4  # bytes before and after the content of a record
_MASK = 0xA282EAD8
_FEW = 64  # contents whose checksums are made faster one by one
_POLYNOMIAL = 0x82F63B78  # of CRC-32C, bits reversed


class TfrecordFile:
    """The records of one TFRECORD file by number; the file is open only while it is read, so readers may share it."""

    def __init__(self, path: str | os.PathLike):
        self._path = path
        self._starts, self._lengths = self._scan()
        self._checked = np.zeros(len(self._starts), bool)

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Returns the contents of the records of these numbers; one that its checksum denies is a `UserError`.

        A content is checked when it is read first: of a single one that takes longer than to decode its image, and
        threads that decode would wait for it.
        """
        contents, stored = [], []
        with files.open_parts(self._path) as file:
            for number in numbers:
                file.seek(self._starts[number])
                content = file.read(self._lengths[number] + _FOOTER)
                contents.append(content[:-_FOOTER])
                stored.append(content[-_FOOTER:])
        if any(len(checksum) < _FOOTER for checksum in stored):
            raise _damaged(self._path, "it has been cut since it was opened")
        new = np.flatnonzero(~self._checked[list(numbers)])
        found = _masked(crc32c([contents[n] for n in new]))
        wrong = new[found != np.frombuffer(b"".join(stored), "<u4")[new]]
        if len(wrong):
            raise _damaged(self._path, f"record {numbers[wrong[0]]} does not have its checksum")
        self._checked[list(numbers)] = True
        return contents

    def _scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the contents start and how long they are, int64 [N] each."""
        size, position, headers = paths.size(self._path), 0, []
        starts: list[int] = []
        with files.open_parts(self._path) as file:
            while position < size:
                header = file.read(_HEADER)
                length = int.from_bytes(header[:8], "little")
                if position + _HEADER + length + _FOOTER > size:
                    raise _damaged(self._path, f"it ends, or its lengths go wrong, in record {len(starts)}")
                starts.append(position + _HEADER)
                headers.append(header)
                position += _HEADER + length + _FOOTER
                file.seek(position)
        table = np.frombuffer(b"".join(headers), [("length", "<u8"), ("checksum", "<u4")])
        lengths = [table["length"][n : n + 1].tobytes() for n in range(len(table))]
        wrong = np.flatnonzero(_masked(crc32c(lengths)) != table["checksum"])
        if len(wrong):
            raise _damaged(self._path, f"the length of record {wrong[0]} does not have its checksum")
        return np.array(starts, np.int64), table["length"].astype(np.int64)


class ArrayRecordFile:
    """The records of one array_record file by number; its reader checks what it reads, and readers may share it."""

    def __init__(self, path: str | os.PathLike):
        if paths.is_remote(path):
            raise UserError(f"{path}: array_record files are read on this machine only; copy the dataset here")
        try:
            from array_record.python.array_record_data_source import ArrayRecordDataSource  # only these files need it
        except ImportError as error:  # TensorFlow Datasets brings it on Linux alone
            raise UserError(f"{path}: reading array_record files needs pip install array_record ({error})") from None
        self._path = path
        with _naming(path):
            self._records = ArrayRecordDataSource([os.fspath(path)])

    def __len__(self) -> int:
        return len(self._records)

    def read(self, numbers: Sequence[int]) -> list[bytes]:
        """Returns the contents of the records of these numbers; damage is a `UserError`."""
        with _naming(self._path):
            return self._records.__getitems__([int(number) for number in numbers])


RecordFile = TfrecordFile | ArrayRecordFile


def _damaged(path: str | os.PathLike, what: object) -> UserError:
    return UserError(f"{path}: damaged ({what}); prepare the dataset again or copy it again")


@contextlib.contextmanager
def _naming(path: str | os.PathLike) -> Iterator[None]:
    """Completes what the reader of array_record files complains of by the file."""
    try:
        yield
    except RuntimeError as error:
        raise _damaged(path, " ".join(str(error).split())[:200]) from None


def crc32c(contents: Sequence[bytes]) -> np.ndarray:
    """Returns the CRC-32C uint32 [N] of N contents."""
    if len(contents) < _FEW:
        return np.array([_crc32c(content) for content in contents], np.uint32)
    # All of them at once, two bytes of each at a time. Zeros before the first other byte leave the sum at zero, so
    # contents of all lengths can end together.
    longest = max(map(len, contents)) + len(_PREFIX)
    longest += longest % 2
    padded = b"".join((_PREFIX + content).rjust(longest, b"\0") for content in contents)
    columns = np.ascontiguousarray(np.frombuffer(padded, "<u2").reshape(-1, longest // 2).T)
    table, state = _table(16), np.zeros(len(contents), np.uint32)
    for column in columns:
        state = table[(state ^ column) & 0xFFFF] ^ (state >> 16)
    return ~state


def _crc32c(content: bytes) -> int:
    table, state = _small_table(), 0xFFFFFFFF
    for byte in content:
        state = table[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _masked(checksums: np.ndarray) -> np.ndarray:
    return ((checksums >> 15) | (checksums << 17)) + np.uint32(_MASK)


@functools.cache
def _table(bits: int) -> np.ndarray:
    """What the lowest `bits` of the sum make of the rest, uint32 [2^bits]."""
    table = np.arange(1 << bits, dtype=np.uint32)
    for _ in range(bits):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return table


@functools.cache
def _small_table() -> list[int]:
    return _table(8).tolist()


def _prefix() -> bytes:
    """The four bytes that lead from the sum 0 to the one that a checksum starts from, all bits set."""
    state = 0xFFFFFFFF
    for _ in range(32):  # a bit back at a time; the polynomial has the highest bit
        state = (state ^ _POLYNOMIAL) << 1 | 1 if state >> 31 else state << 1
    return state.to_bytes(4, "little")


_PREFIX = _prefix()
