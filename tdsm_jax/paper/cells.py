"""The cells of the tables of Na et al. 2024 (TDSM): what each trains, the values published for it, and where."""

import itertools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from tdsm_jax.errors import UserError, did_you_mean
from tdsm_jax.evaluation.table import grid

SOURCES = {
    "tdsm": "Na et al. 2024, arXiv 2402.17517",
    "sbdc": "SBDC, arXiv 2508.19581",
    "dmis": "DMIS, arXiv 2510.03016, 12.8 million images a model",
    "either": "arXiv 2402.17517 or 2510.03016: quoted without its table",
}


class Published(NamedTuple):
    """A published value, in the unit of `METRICS`, and its key in `SOURCES`."""

    value: float
    source: str = "tdsm"


class Metric(NamedTuple):
    """How a metric is headed and printed, and where it stands in metrics.json (see `report_words.flat`)."""

    heading: str
    key: str
    factor: int
    digits: int


METRICS = {
    "fid": Metric("FID", "inception_fd", 1, 2),
    "cw_fid": Metric("CW-FID", "inception_cw_fd", 1, 2),
    "cas": Metric("CAS, %", "cas_resnet50", 100, 2),
    "cw_density": Metric("CW-density", "inception_cw_density_k3", 1, 3),
    "cw_coverage": Metric("CW-coverage", "inception_cw_coverage_k3", 1, 3),
    "fidelity": Metric("label fidelity (ResNet-50), %", "label_fidelity_resnet50", 100, 2),
    "cas_resnet18": Metric("CAS (ResNet-18), %", "cas_resnet18", 100, 2),
}


class Cell(NamedTuple):
    """One cell: its name, the config it is a variant of, the kind and rate of its label noise, its method."""

    name: str
    config: str
    noise: str  # sym, asym, crawled, none; assumed: clean labels taken for sym
    rate: float
    method: str  # of `METHODS`

    @property
    def arguments(self) -> str:
        """The arguments of its config."""
        method = "methods=clean" if self.method == "clean" else METHODS[self.method].arguments
        kind = {"sym": "sym", "asym": "asym"}.get(self.noise, "")
        return ",".join(filter(None, (kind and f"noise={kind}", f"rate={self.rate}" if self.rate else "", method)))

    @property
    def trained(self) -> str:
        """The method as metrics.json names it."""
        return METHODS[self.method].trained


class Method(NamedTuple):
    """What is trained, in words, the config arguments that ask for it, and its name in metrics.json."""

    words: str
    arguments: str
    trained: str


METHODS = {
    "dsm": Method("DSM", "methods=dsm,objective=published", "dsm"),
    "s-weighted": Method("S-weighted DSM", "methods=s_weighted,objective=published", "s_weighted"),
    "tdsm": Method("TDSM, as published", "methods=tdsm,objective=published", "tdsm"),
    "floor": Method("TDSM, floor (ours)", "methods=tdsm,objective=floor", "tdsm"),
    "clean": Method("DSM on clean labels", "methods=clean,objective=published", "clean"),
}
NOISY = ("dsm", "s-weighted", "tdsm", "floor")
_BOTH = tuple(itertools.product(("sym", "asym"), (0.2, 0.4)))
SETTINGS = {  # prefix of the names -> config, label noise
    "mnist": ("mnist.py", _BOTH),
    "c10": ("cifar10.py", (*_BOTH, ("sym", 0.5), ("sym", 0.8))),  # the last two: the follow-ups'
    "c100": ("cifar100.py", _BOTH),
}


def _cells() -> Iterator[Cell]:
    for prefix, (config, noises) in SETTINGS.items():
        for (kind, rate), method in itertools.product(noises, NOISY):
            yield Cell(f"{prefix}-{kind}{100 * rate:.0f}-{method}", config, kind, rate, method)
        yield Cell(f"{prefix}-clean", config, "none", 0.0, "clean")
    for method in ("tdsm", "floor"):  # the labels of the benchmark itself, taken for 5% noisy
        yield Cell(f"c10-assumed5-{method}", "cifar10.py", "assumed", 0.05, method)
    for method in NOISY:
        yield Cell(f"clothing1m-{method}", "clothing1m.py", "crawled", 0.0, method)


CELLS = {cell.name: cell for cell in _cells()}
PUBLISHED: dict[str, dict[str, Published]] = {  # only what is known; a cell without a value has none here
    "c10-sym40-dsm": {"fid": Published(2.07), "cw_fid": Published(30.45), "cas": Published(47.21)},
    "c10-sym40-s-weighted": {"cw_fid": Published(16.26), "cas": Published(63.46)},
    "c10-sym40-tdsm": {"fid": Published(2.43), "cw_fid": Published(15.92), "cas": Published(62.28)},
    "c10-sym50-dsm": {"cw_fid": Published(38.6, "sbdc")},
    "c10-sym50-tdsm": {"cw_fid": Published(18.2, "sbdc")},
    "c10-sym80-dsm": {"cw_fid": Published(71.7, "sbdc")},
    "c10-sym80-tdsm": {"cw_fid": Published(59.8, "sbdc")},
    "c10-asym40-dsm": {"cw_fid": Published(14.70, "either")},
    "c10-clean": {"fid": Published(2.05, "either")},
    "c100-sym40-dsm": {"fid": Published(3.36), "cw_fid": Published(100.04), "cas": Published(15.41)},
    "c100-sym40-tdsm": {"fid": Published(6.85), "cw_fid": Published(93.24), "cas": Published(21.17)},
    "clothing1m-dsm": {"fid": Published(6.67), "cas": Published(46.52)},
    "clothing1m-tdsm": {"fid": Published(4.94), "cas": Published(47.79)},
}
FOLLOW_UPS: dict[str, dict[str, Published]] = {  # methods that are not built here -> beside which cells they stand
    "c10-sym40": {"cw_fid": Published(13.85, "dmis")},
    "c10-sym50": {"cw_fid": Published(15.6, "sbdc")},
    "c10-sym80": {"cw_fid": Published(48.2, "sbdc")},
    "c10-asym40": {"cw_fid": Published(13.24, "dmis")},
    "c10-clean": {"cw_fid": Published(9.83, "dmis")},
}


def find(name: str) -> Cell:
    """Returns the cell of a name; an unknown one is a `UserError` that names the nearest."""
    if name in CELLS:
        return CELLS[name]
    said = did_you_mean(name, CELLS).partition("; valid:")[0] if name else ""
    raise UserError(f"unknown cell {name!r}{said}; python -m tdsm_jax.paper lists them all")


def manifest() -> str:
    """Returns the Markdown table of all cells with their published values."""
    rows = [
        (c.name, c.config, noise_words(c), METHODS[c.method].words, *published_words(PUBLISHED.get(c.name, {})))
        for c in CELLS.values()
    ]
    rows += [(f"({name})", "", "", "", *published_words(values)) for name, values in FOLLOW_UPS.items()]
    return f"{grid(('cell', 'config', 'label noise', 'method', 'published', 'source'), rows)}\n\n{sources()}"


def noise_words(cell: Cell) -> str:
    """Returns the label noise of a cell in words."""
    return {"none": "none", "crawled": "as crawled", "assumed": f"none, taken for sym {cell.rate:.0%}"}.get(
        cell.noise, f"{cell.noise} {cell.rate:.0%}"
    )


def published_words(values: Mapping[str, Published]) -> tuple[str, str]:
    """Returns published values in words, and the keys of their sources."""
    numbers = ", ".join(f"{METRICS[name].heading.removesuffix(', %')} {one.value}" for name, one in values.items())
    return numbers, ", ".join(sorted({one.source for one in values.values()}))


def sources() -> str:
    """Returns the sources of published values, a line each."""
    return "\n".join(f"- {key}: {words}" for key, words in SOURCES.items())
