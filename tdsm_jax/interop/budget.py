"""How much one file may ask of its reader, and the two ways in which it is refused."""

from tdsm_jax.errors import UserError

HEAVY = 3  # opcodes that an object of some 200 bytes counts for in addition


class Unreadable(UserError):
    """What is damaged or foreign in the content, before the path is known."""


class Refused(UserError):
    """What the content asks for that is not given, before the path is known."""


class Budget:
    """How much work one file may ask for, however often its parts refer to each other.

    `instructions`: opcodes, in all its pickles together. One of a single byte can make an object of 70, so this
    bounds the memory; a large network takes a fifth. `data`: bytes of storages and archive records; an honest
    file asks for each byte that it holds at most once.
    """

    def __init__(self, data: int, instructions: int = 1_000_000):
        self._data = data
        self._instructions = instructions

    def spend_instructions(self, count: int = 1) -> None:
        self._instructions -= count
        if self._instructions < 0:
            raise Unreadable("it has far more instructions than any network takes")

    def spend_data(self, nbytes: int) -> None:
        self._data -= nbytes
        if self._data < 0:
            raise Unreadable("it declares more data than it holds")
