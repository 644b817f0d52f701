"""A pickle read as data: the stack machine of its opcodes, without imports, attributes or calls of its own.

Python's unpickler imports what a file names, and allocates what it declares before reading it. This one knows the
opcodes that protocols 2 to 5 use for plain data; a name in the file reaches `find_global` as two strings, and what
may be made of it is for a subclass to say. It reads a buffer in place: a bytes object is a view of it.
"""

import pickle  # the names of the opcodes; its unpickler is not used
import struct
from collections.abc import Callable
from typing import Any

from tdsm_jax.errors import printable
from tdsm_jax.interop.budget import HEAVY, Budget, Refused, Unreadable

HIGHEST_PROTOCOL = 5
LONGEST_GLOBAL = 512  # bytes of a module or a name in the text form
# No tuples: hashing one visits all it refers to, which shared references make exponential.
KEY_TYPES = (str, int, float, bool, type(None))


class Blank:
    """An object between its creation and its state, which a pickle gives in two steps."""

    memo_key: int | None = None


def no_persistent_ids(persistent_id: Any) -> Any:
    """Refuses the persistent ids of a plain pickle, which has no container to keep what they stand for."""
    raise Unreadable("it refers to storages outside of a torch container")


class PickleMachine:
    """Reads the pickle at `position` of `data`; `run` leaves `position` behind its end."""

    def __init__(
        self,
        data: memoryview,
        budget: Budget,
        position: int = 0,
        persistent_load: Callable[[Any], Any] = no_persistent_ids,
    ):
        self.data = data
        self.budget = budget
        self.position = position
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._outer_stacks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def find_global(self, module: str, name: str) -> Any:
        """Returns what stands for a global of the file. The base class refuses every one."""
        raise Refused(
            f"it names {printable(module)}.{printable(name)}, which is not among the classes and functions of such "
            "files; nothing was executed. Do not open it with other programs unless you trust where it is from"
        )

    def call(self, function: Any, arguments: Any) -> Any:
        """Returns what stands for `function(*arguments)`."""
        raise Unreadable(f"it calls a {type(function).__name__}")

    def set_state(self, value: Any, state: Any) -> Any:
        """Returns `value` with its state; another object than `value` only if that is a `Blank`."""
        raise Unreadable(f"it gives a state to a {type(value).__name__}")

    def run(self) -> Any:
        """Returns the object that the pickle describes."""
        while True:
            self.budget.spend_instructions()
            opcode = bytes(self._take(1))
            if opcode == pickle.STOP:
                return self._stack.pop()
            if opcode not in _INSTRUCTIONS:
                raise Unreadable(f"the byte {opcode.hex()} at {self.position - 1} is no instruction of such files")
            method, *arguments = _INSTRUCTIONS[opcode]
            method(self, *arguments)

    def _take(self, count: int) -> memoryview:
        if count > len(self.data) - self.position:
            raise Unreadable("it ends in the middle (a partial download?)")
        self.position += count
        return self.data[self.position - count : self.position]

    def _unsigned(self, width: int) -> int:
        return int.from_bytes(self._take(width), "little")

    def _line(self) -> str:
        """Up to the next newline, which is skipped."""
        line, newline, _ = bytes(self.data[self.position : self.position + LONGEST_GLOBAL]).partition(b"\n")
        if not newline:
            raise Unreadable("it ends in the middle of a name")
        self.position += len(line) + 1
        return line.decode()

    def _items(self) -> list[Any]:
        """Everything above the last mark."""
        items, self._stack = self._stack, self._outer_stacks.pop()
        return items

    # One method an instruction, in the order of the table below.

    def _protocol(self) -> None:
        protocol = self._unsigned(1)
        if not 2 <= protocol <= HIGHEST_PROTOCOL:
            raise Unreadable(f"it has pickle protocol {protocol}; 2 to {HIGHEST_PROTOCOL} can be read")

    def _frame(self) -> None:
        if self._unsigned(8) > len(self.data) - self.position:
            raise Unreadable("it ends in the middle of a frame (a partial download?)")

    def _constant(self, value: Any) -> None:
        self._stack.append(value)

    def _number(self, form: str) -> None:
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        self._stack.append(value)

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._unsigned(1)), "little", signed=True))

    def _bytes(self, width: int) -> None:
        self.budget.spend_instructions(HEAVY)
        self._stack.append(self._take(self._unsigned(width)))

    def _text(self, width: int) -> None:
        self._stack.append(str(self._take(self._unsigned(width)), "utf-8"))

    def _empty(self, container: type) -> None:
        self._stack.append(container())

    def _empty_set(self) -> None:
        self.budget.spend_instructions(HEAVY)
        self._stack.append(set())

    def _mark(self) -> None:
        self._outer_stacks.append(self._stack)
        self._stack = []

    def _pop(self) -> None:
        if self._stack:
            self._stack.pop()
        else:  # the mark itself
            self._items()

    def _duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def _last_as_tuple(self, length: int) -> None:
        if len(self._stack) < length:
            raise Unreadable("a tuple lacks items")
        self._stack[-length:] = [tuple(self._stack[-length:])]

    def _tuple(self) -> None:
        items = self._items()
        self._stack.append(tuple(items))

    def _append(self) -> None:
        self._extend([self._stack.pop()])

    def _appends(self) -> None:
        self._extend(self._items())

    def _extend(self, items: list[Any]) -> None:
        if type(self._stack[-1]) is not list:
            raise Unreadable(f"it appends to a {type(self._stack[-1]).__name__}")
        self._stack[-1].extend(items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._update([key], [value])

    def _set_items(self) -> None:
        items = self._items()
        self._update(items[::2], items[1::2])

    def _update(self, keys: list[Any], values: list[Any]) -> None:
        if type(self._stack[-1]) is not dict or len(keys) != len(values):
            raise Unreadable(f"it sets items of a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(zip(checked_keys(keys), values, strict=True))

    def _add_items(self) -> None:
        items = self._items()
        if type(self._stack[-1]) is not set:
            raise Unreadable(f"it adds items to a {type(self._stack[-1]).__name__}")
        self._stack[-1].update(checked_keys(items))

    def _frozen_set(self) -> None:
        self.budget.spend_instructions(HEAVY)
        items = self._items()
        self._stack.append(frozenset(checked_keys(items)))

    def _put_next(self) -> None:
        self._memoize(len(self._memo))

    def _put(self, width: int) -> None:
        self._memoize(self._unsigned(width))

    def _memoize(self, key: int) -> None:
        value = self._memo[key] = self._stack[-1]
        if isinstance(value, Blank):
            value.memo_key = key

    def _get(self, width: int) -> None:
        self._stack.append(self._memo[self._unsigned(width)])

    def _global(self) -> None:
        module, name = self._line(), self._line()
        self._stack.append(self.find_global(module, name))

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise Unreadable("a global has no name")
        self._stack.append(self.find_global(module, name))

    def _call(self) -> None:
        arguments, function = self._stack.pop(), self._stack.pop()
        if type(arguments) is not tuple:
            raise Unreadable("the arguments of a call are no tuple")
        self._stack.append(self.call(function, arguments))

    def _build(self) -> None:
        state, value = self._stack.pop(), self._stack.pop()
        finished = self.set_state(value, state)
        if isinstance(value, Blank) and value.memo_key is not None:
            self._memo[value.memo_key] = finished
        self._stack.append(finished)

    def _persistent(self) -> None:
        self._stack.append(self._persistent_load(self._stack.pop()))


def checked_keys(keys: list[Any]) -> list[Any]:
    """Returns `keys` if each is a plain scalar."""
    for key in keys:
        if type(key) not in KEY_TYPES:
            raise Unreadable(f"a {type(key).__name__} is no key of such files")
    return keys


# opcode -> method and its arguments. What is not here no snapshot uses: text forms, extension codes, old classes.
_INSTRUCTIONS: dict[bytes, tuple] = {
    pickle.PROTO: (PickleMachine._protocol,),
    pickle.FRAME: (PickleMachine._frame,),
    pickle.NONE: (PickleMachine._constant, None),
    pickle.NEWTRUE: (PickleMachine._constant, True),
    pickle.NEWFALSE: (PickleMachine._constant, False),
    pickle.EMPTY_TUPLE: (PickleMachine._constant, ()),
    pickle.BININT: (PickleMachine._number, "<i"),
    pickle.BININT1: (PickleMachine._number, "<B"),
    pickle.BININT2: (PickleMachine._number, "<H"),
    pickle.BINFLOAT: (PickleMachine._number, ">d"),
    pickle.LONG1: (PickleMachine._long,),
    pickle.SHORT_BINBYTES: (PickleMachine._bytes, 1),
    pickle.BINBYTES: (PickleMachine._bytes, 4),
    pickle.BINBYTES8: (PickleMachine._bytes, 8),
    pickle.BYTEARRAY8: (PickleMachine._bytes, 8),
    pickle.SHORT_BINUNICODE: (PickleMachine._text, 1),
    pickle.BINUNICODE: (PickleMachine._text, 4),
    pickle.BINUNICODE8: (PickleMachine._text, 8),
    pickle.EMPTY_LIST: (PickleMachine._empty, list),
    pickle.EMPTY_DICT: (PickleMachine._empty, dict),
    pickle.EMPTY_SET: (PickleMachine._empty_set,),
    pickle.MARK: (PickleMachine._mark,),
    pickle.POP: (PickleMachine._pop,),
    pickle.POP_MARK: (PickleMachine._items,),
    pickle.DUP: (PickleMachine._duplicate,),
    pickle.TUPLE1: (PickleMachine._last_as_tuple, 1),
    pickle.TUPLE2: (PickleMachine._last_as_tuple, 2),
    pickle.TUPLE3: (PickleMachine._last_as_tuple, 3),
    pickle.TUPLE: (PickleMachine._tuple,),
    pickle.APPEND: (PickleMachine._append,),
    pickle.APPENDS: (PickleMachine._appends,),
    pickle.SETITEM: (PickleMachine._set_item,),
    pickle.SETITEMS: (PickleMachine._set_items,),
    pickle.ADDITEMS: (PickleMachine._add_items,),
    pickle.FROZENSET: (PickleMachine._frozen_set,),
    pickle.MEMOIZE: (PickleMachine._put_next,),
    pickle.BINPUT: (PickleMachine._put, 1),
    pickle.LONG_BINPUT: (PickleMachine._put, 4),
    pickle.BINGET: (PickleMachine._get, 1),
    pickle.LONG_BINGET: (PickleMachine._get, 4),
    pickle.GLOBAL: (PickleMachine._global,),
    pickle.STACK_GLOBAL: (PickleMachine._stack_global,),
    pickle.REDUCE: (PickleMachine._call,),
    pickle.NEWOBJ: (PickleMachine._call,),
    pickle.BUILD: (PickleMachine._build,),
    pickle.BINPERSID: (PickleMachine._persistent,),
}
