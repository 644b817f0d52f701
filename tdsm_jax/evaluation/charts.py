"""Charts as SVG strings, without a plotting library: lines, dots, heat maps."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from tdsm_jax.errors import UserError
from tdsm_jax.evaluation import svg
from tdsm_jax.evaluation.svg import short_number

_MOST_MARKED_POINTS = 14  # more markers than this hide the line they sit on
_MOST_NUMBERED_CLASSES = 12  # beyond it a cell is too small to hold its number
_LEVELS = 20  # shades of a large heat map; cells of one shade share one path, which keeps K = 100 small


def _nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _tick_labels(ticks: Sequence[float]) -> list[str]:
    """Returns short numbers, with as many digits as tell neighbours apart: 2.29, 2.2925, 2.295."""
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=math.inf)
    for digits in range(3, 7):
        if all(abs(float(f"{t:.{digits}g}") - t) < 0.01 * step for t in ticks):
            break
    return [short_number(t, digits) for t in ticks]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    stride = max(1, len(decades) // 6)
    for mantissas in ((1,), (1, 3), (1, 2, 5)):
        ticks = [m * 10.0**d for d in decades[::stride] for m in mantissas]
        ticks = [t for t in ticks if low <= t * (1 + 1e-9) and t <= high * (1 + 1e-9)]
        if len(ticks) >= 4:
            return ticks
    return [t for t in _nice_ticks(low, high) if t > 0]


@dataclasses.dataclass(frozen=True)
class _Axis:
    """A scale from values to drawing units, [low, high] -> [start, end]."""

    low: float
    high: float
    start: float
    end: float
    log: bool

    @classmethod
    def spanning(cls, values: np.ndarray, start: float, end: float, log: bool, padding: float = 0.0) -> "_Axis":
        """Returns the axis holding all `values` with `padding` (a fraction of the length) at both ends."""
        low, high = (float(values.min()), float(values.max())) if values.size else (0.1, 1.0)
        if log:
            margin = (high / low) ** padding if high > low * (1 + 1e-6) else 1.5
            return cls(low / margin, high * margin, start, end, log)
        if high - low <= 1e-6 * max(abs(low), abs(high)):
            margin = 0.1 * max(abs(low), abs(high)) or 1.0
            return cls(low - margin, high + margin, start, end, log)
        margin = max(padding, 0.08) * (high - low)  # takes in the next round number where it is near
        near = _nice_ticks(low - margin, high + margin)
        low, high = (min(low, near[0]), max(high, near[-1])) if near else (low, high)
        margin = padding * (high - low)
        return cls(low - margin, high + margin, start, end, log)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _nice_ticks(self.low, self.high)

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _in_range(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns `values` [n] where the tick arithmetic can neither overflow nor underflow: too large is NaN."""
    values = np.array(values, float).ravel()
    values[np.abs(values) < 1e-90] = 0.0
    values[np.abs(values) > 1e90] = np.nan
    return values


def _plottable(
    x: Sequence[float] | np.ndarray, y: Sequence[float] | np.ndarray, log_x: bool, log_y: bool
) -> np.ndarray:
    """Returns the points [n, 2] without NaN, infinite and, on a log axis, non-positive ones."""
    points = np.stack([_in_range(x), _in_range(y)], axis=1)
    kept = np.isfinite(points).all(axis=1)
    for column, log in enumerate((log_x, log_y)):
        kept &= (points[:, column] > 0) | (not log)
    return points[kept]


def _legend(entries: Mapping[str, Callable[[float, float], str]], y: float) -> tuple[str, float]:
    """Returns the legend, flowing over as many rows as it needs, and the y below it.

    `entries` maps a name to what draws its 26-unit-wide sample at (x, y).
    """
    parts, x = [], 4.0
    for name, sample in entries.items():
        shown = svg.shorten(name, 40)
        width = 32 + svg.text_width(shown) + 12
        if x > 4 and x + width > svg.WIDTH:
            x, y = 4.0, y + 20
        parts.append(sample(x, y) + svg.text(x + 32, y + 4, shown, fill=svg.INK))
        x += width
    return "".join(parts), y + 14


def _marker_sample(index: int, x: float, y: float) -> str:
    return svg.marker(index, x + 18, y)


def _line_sample(index: int, x: float, y: float) -> str:
    return svg.rule(x, y, x + 26, y, svg.stroke(index)) + svg.marker(index, x + 13, y)


def _reference_sample(x: float, y: float) -> str:
    return svg.rule(x, y, x + 26, y, svg.REFERENCE)


def _curve(index: int, name: str, points: np.ndarray, x_axis: _Axis, y_axis: _Axis) -> str:
    places = [(x_axis.place(x), y_axis.place(y)) for x, y in points]
    path = "L".join(f"{px:.1f} {py:.1f}" for px, py in places)
    marked = np.unique(np.linspace(0, len(points) - 1, min(len(points), _MOST_MARKED_POINTS)).round().astype(int))
    markers = (
        svg.marker(
            index, places[i][0], places[i][1], f"{name}: {short_number(points[i, 0])}, {short_number(points[i, 1])}"
        )
        for i in marked
    )
    return f'<path d="M{path}" style="fill:none;{svg.stroke(index)}"/>' + "".join(markers)


def _x_axis(axis: _Axis, top: float, bottom: float, label: str) -> str:
    ticks = axis.ticks()
    drawn = "".join(
        svg.rule(axis.place(t), top, axis.place(t), bottom) + svg.text(axis.place(t), bottom + 17, number, "middle")
        for t, number in zip(ticks, _tick_labels(ticks), strict=True)
    )
    return drawn + svg.text((axis.start + axis.end) / 2, bottom + 37, label, "middle", svg.INK)


def _y_axis(axis: _Axis, left: float, right: float, label: str) -> str:
    ticks = axis.ticks()
    drawn = "".join(
        svg.rule(left, axis.place(t), right, axis.place(t)) + svg.text(left - 7, axis.place(t) + 4, number, "end")
        for t, number in zip(ticks, _tick_labels(ticks), strict=True)
    )
    return drawn + svg.text(4, axis.end - 12, label, fill=svg.INK)


def line_chart(
    series: Mapping[str, tuple[Sequence[float] | np.ndarray, Sequence[float] | np.ndarray]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Mapping[str, float] | None = None,
    y_takes_in: Sequence[float] = (),
    styles: Sequence[int] | None = None,
) -> str:
    """Returns an SVG line chart.

    `series` maps a name to its (x, y), each [n]; `references` maps a name to the height of a horizontal line;
    the y axis reaches at least to the values `y_takes_in`; `styles` are the numbers of the series' colours, dashes
    and markers, by default 0, 1, 2 and so on.
    Points an axis cannot show (NaN, infinite, or non-positive on a log axis) are left out; a series of one
    point is a marker, and a chart without points says so.
    """
    points = {name: _plottable(x, y, log_x, log_y) for name, (x, y) in series.items()}
    references = {
        name: value for name, value in (references or {}).items() if _plottable([1.0], [value], log_x, log_y).size
    }
    style_of = dict(zip(points, styles or range(len(points)), strict=True))
    samples = {name: functools.partial(_line_sample, style_of[name]) for name in points}
    legend, top = _legend(samples | dict.fromkeys(references, _reference_sample), 12)
    top, bottom, left, right = top + 24, top + 224, 48, svg.WIDTH - 12
    every = np.concatenate([np.zeros((0, 2)), *points.values()])
    x_axis = _Axis.spanning(every[:, 0], left + 8, right - 8, log_x)
    heights = np.concatenate([every[:, 1], list(references.values()), y_takes_in])
    y_axis = _Axis.spanning(heights, bottom, top, log_y, padding=0.06)
    body = [legend, _y_axis(y_axis, left, right, y_label), _x_axis(x_axis, bottom, bottom + 4, x_label)]
    for value in references.values():
        body.append(svg.rule(left, y_axis.place(value), right, y_axis.place(value), svg.REFERENCE))
    body += [_curve(style_of[name], name, p, x_axis, y_axis) for name, p in points.items() if p.size]
    if not every.size:
        body.append(svg.text((left + right) / 2, (top + bottom) / 2, "nothing recorded", "middle"))
    return svg.drawing(bottom + 48, f"Line chart of {y_label} against {x_label}: {', '.join(points)}", "".join(body))


def dot_plot(
    series: Mapping[str, Sequence[float] | np.ndarray],
    *,
    names: Sequence[str],
    x_label: str,
    styles: Sequence[int] | None = None,
) -> str:
    """Returns an SVG with one row per name and one marker per series, joined by a grey bar.

    `series` maps a series to its values [len(names)]; values that are not finite are left out. `styles` are the
    numbers of the series' colours and markers, by default 0, 1, 2 and so on.
    """
    values = {name: _in_range(v) for name, v in series.items()}
    style_of = dict(zip(values, styles or range(len(values)), strict=True))
    legend, top = _legend({name: functools.partial(_marker_sample, style_of[name]) for name in values}, 12)
    left, bottom = 16 + 7 * max([4, *(len(svg.shorten(n, 14)) for n in names)]), top + 8 + 22 * len(names)
    every = np.concatenate([np.zeros(0), *values.values()])
    axis = _Axis.spanning(every[np.isfinite(every)], left + 8, svg.WIDTH - 16, log=False, padding=0.03)
    body = [legend, _x_axis(axis, top + 4, bottom, x_label)]
    for row, name in enumerate(names):
        y = top + 16 + 22 * row
        finite = {series: v[row] for series, v in values.items() if np.isfinite(v[row])}
        body.append(svg.text(left - 8, y + 4, svg.shorten(name, 14), "end", svg.INK))
        if finite:
            ends = axis.place(min(finite.values())), axis.place(max(finite.values()))
            body.append(svg.rule(ends[0], y, ends[1], y, f"stroke:{svg.LINE};stroke-width:7;stroke-linecap:round"))
        body += [
            svg.marker(style_of[series], axis.place(v), y, f"{name}, {series}: {short_number(v)}")
            for series, v in finite.items()
        ]
    label = f"Dot plot of {x_label} for each of {len(names)} classes: {', '.join(values)}"
    return svg.drawing(bottom + 44, label, "".join(body))


def _cells(matrix: np.ndarray, highest: float, size: float) -> Iterator[str]:
    """Yields the shaded squares of a heat map without numbers: one path of horizontal runs for each shade."""
    levels = np.ceil(np.nan_to_num(matrix / highest).clip(0, 1) * _LEVELS).astype(int)
    runs: dict[int, list[str]] = {}
    for row, line in enumerate(levels):
        edges = [0, *(np.flatnonzero(np.diff(line)) + 1), len(line)]
        for start, end in itertools.pairwise(edges):
            runs.setdefault(int(line[start]), []).append(f"M{start} {row}h{end - start}v1h{start - end}z")
    for level in sorted(runs.keys() - {0}):
        style = f"fill:{svg.HEAT};fill-opacity:{level / _LEVELS:g}"
        path = "".join(runs[level])
        yield f'<path d="{path}" transform="scale({size:.4f})" shape-rendering="crispEdges" style="{style}"/>'


def _numbered_cells(matrix: np.ndarray, highest: float, size: float, names: Sequence[str]) -> Iterator[str]:
    decimals = 1 if highest >= 10 else 2
    square = f"M.5.5h{size - 1:.1f}v{size - 1:.1f}h-{size - 1:.1f}z"
    for row, column in np.ndindex(*matrix.shape):
        value = float(matrix[row, column])
        shade = min(max(value / highest, 0.0), 1.0) if math.isfinite(value) else 0.0
        fill = svg.ON_HEAT if shade > 0.65 else svg.INK if value else svg.MUTED
        tooltip = svg.escape(f"{names[row]} → {names[column]}: {short_number(value)}")
        number = f"{value:.0f}" if 10 <= abs(value) < 1000 else short_number(round(value, decimals))
        yield (
            f'<g transform="translate({column * size:.1f} {row * size:.1f})"><title>{tooltip}</title>'
            f'<path d="{square}" style="fill:{svg.HEAT};fill-opacity:{shade:.3f}"/>'
            f"{svg.text(size / 2, size / 2 + 4.5, number, 'middle', fill)}</g>"
        )


def _colour_key(left: float, y: float, highest: float) -> str:
    width = 6.0
    swatches = (
        f'<path d="M{left + i * width:.1f} {y:.1f}h{width}v10h-{width}z" '
        f'style="fill:{svg.HEAT};fill-opacity:{(i + 0.5) / _LEVELS:g}"/>'
        for i in range(_LEVELS)
    )
    ends = svg.text(left - 7, y + 10, "0", "end") + svg.text(left + _LEVELS * width + 7, y + 10, short_number(highest))
    return "".join(swatches) + ends


def heat_map(
    matrix: np.ndarray,
    *,
    row_label: str,
    column_label: str,
    names: Sequence[str],
    highest: float | None = None,
) -> str:
    """Returns an SVG heat map of `matrix` [K, K], darker for larger, with its numbers where K <= 12.

    `names` label rows and columns; `highest` is the value of the darkest shade, by default the largest entry.
    """
    matrix, K = np.asarray(matrix, float), len(names)
    if matrix.shape != (K, K):
        raise UserError(f"heat map of shape {matrix.shape} for {K} class names; pass a [{K}, {K}] matrix")
    highest = highest or float(matrix[np.isfinite(matrix)].max(initial=0.0)) or 1.0
    shown = [svg.shorten(name, 10) for name in names]
    margin = 10 + 6.6 * max([2, *map(len, shown)])
    left, top, size = margin + 4, 26, (svg.WIDTH - margin - 12) / max(K, 1)
    bottom = top + size * K
    numbered = K <= _MOST_NUMBERED_CLASSES
    cells = _numbered_cells(matrix, highest, size, names) if numbered else _cells(matrix, highest, size)
    body = [
        svg.text(4, 12, f"↓ {row_label}", fill=svg.INK),
        f'<g transform="translate({left} {top})">',
        *cells,
        "</g>",
    ]
    upright = margin - 10 <= size
    for i in range(0, K, 1 if numbered else math.ceil(K / 12)):
        body.append(svg.text(left - 7, top + (i + 0.5) * size + 4, shown[i], "end"))
        turn = "" if upright else ' transform="rotate(-90)"'
        dx, dy, anchor = (0, 17, "middle") if upright else (4, 8, "end")
        label = svg.text(-dy, dx, shown[i], anchor) if turn else svg.text(dx, dy, shown[i], anchor)
        body.append(f'<g transform="translate({left + (i + 0.5) * size:.1f} {bottom:.1f})"><g{turn}>{label}</g></g>')
    below = bottom + (30 if upright else margin + 12)
    body += [
        _colour_key(left, below, highest),
        svg.text(svg.WIDTH - 8, below + 10, f"→ {column_label}", "end", svg.INK),
    ]
    return svg.drawing(below + 16, f"Heat map, rows: {row_label}, columns: {column_label}", "".join(body))
