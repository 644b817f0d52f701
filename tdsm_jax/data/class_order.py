"""The order of class names: labels are numbers, which mean other classes where those are named in another order."""

import os
from collections.abc import Sequence

from tdsm_jax.errors import UserError, printable


def check(path: str | os.PathLike, names: Sequence[str], other_path: str | os.PathLike, others: Sequence[str]) -> None:
    """Raises `UserError` unless the classes that both name have the same names; either may lack the last ones, or all.

    Numbers in order, which stand where names are not known, contradict none.
    """
    numbered = any(list(part) == [str(y) for y in range(len(part))] for part in (names, others))
    if numbered and not set(names) & set(others):
        return
    for y, (name, other) in enumerate(zip(names, others, strict=False)):
        if name != other:
            where = f"{path} and {other_path}"
            what = f"class {y} is {printable(name)} in the first and {printable(other)} in the second"
            if set(names) == set(others):
                raise UserError(f"{where} list their classes in another order ({what}); write both in one")
            raise UserError(f"{where} name other classes ({what}); give parts of one data set")
