"""The drawing kit of charts: colours, markers, dashes, text and numbers as SVG strings.

Series differ in colour (Okabe-Ito), dash and marker, so a chart survives colour blindness and grey print.
Colours are CSS variables with light-mode fallbacks: an SVG stands alone, and a page that includes `THEME`
gives it a dark mode. Drawings are as wide as a phone, so that their text is readable there and on a desktop.
"""

import html
import math
import re
from collections.abc import Sequence

WIDTH = 360
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_DARK_COLOURS = ("#E8742A", "#56B4E9", "#1DB88C", "#D98FB8", "#E69F00", "#5B8FD9")
_DASHES = ("7 3", "none", "2 3", "10 3 2 3", "4 2")
_MARKERS = (
    "M-4.2 0a4.2 4.2 0 1 0 8.4 0a4.2 4.2 0 1 0-8.4 0z",  # circle
    "M-3.8-3.8h7.6v7.6h-7.6z",  # square
    "M0-4.8L4.8 3.8H-4.8z",  # triangle
    "M0-5.2L5.2 0L0 5.2L-5.2 0z",  # diamond
    "M0 4.8L4.8-3.8H-4.8z",  # triangle, point down
    "M-1.6-4.6h3.2v3h3v3.2h-3v3h-3.2v-3h-3v-3.2h3z",  # plus
)


def _theme(ink: str, muted: str, line: str, surface: str, heat: str, on_heat: str, series: Sequence[str]) -> str:
    names = {"ink": ink, "muted": muted, "line": line, "surface": surface, "heat": heat, "on-heat": on_heat}
    names |= {f"series-{i}": colour for i, colour in enumerate(series)}
    return ":root{" + "".join(f"--{name}:{value};" for name, value in names.items()) + "}"


THEME = (
    _theme("#1c2430", "#5b6675", "#dfe3e8", "#ffffff", "#00518a", "#ffffff", COLOURS)
    + "@media(prefers-color-scheme:dark){"
    + _theme("#e8ebef", "#9aa5b3", "#323a45", "#1a1f26", "#56B4E9", "#0d1116", _DARK_COLOURS)
    + "}"
)
INK, MUTED, LINE = "var(--ink,#1c2430)", "var(--muted,#5b6675)", "var(--line,#dfe3e8)"
REFERENCE = f"stroke:{INK};stroke-width:1.5;stroke-dasharray:1 3"
SURFACE, HEAT, ON_HEAT = "var(--surface,#fff)", "var(--heat,#00518a)", "var(--on-heat,#fff)"


def escape(text: object) -> str:
    """Returns `text` safe inside HTML and XML, element or attribute; control characters become U+FFFD."""
    return html.escape("".join(c if c.isprintable() else "\ufffd" for c in str(text)))


def series_colour(index: int) -> str:
    """Returns the CSS colour of the series at `index`, the same in every chart."""
    index %= len(COLOURS)
    return f"var(--series-{index},{COLOURS[index]})"


def marker(index: int, x: float, y: float, tooltip: str = "") -> str:
    """Returns the SVG marker of the series at `index`, centred on (x, y)."""
    title = f"<title>{escape(tooltip)}</title>" if tooltip else ""
    # Another shape in each round of the colours, so that two series never share both.
    chosen = _MARKERS[(index + index // len(COLOURS)) % len(_MARKERS)]
    shape = f'd="{chosen}" transform="translate({x:.1f} {y:.1f})"'
    return f'<path {shape} style="fill:{series_colour(index)};stroke:{SURFACE}">{title}</path>'


def stroke(index: int) -> str:
    """Returns the CSS of the line of the series at `index`."""
    dash = _DASHES[index % len(_DASHES)]
    return f"stroke:{series_colour(index)};stroke-width:2;stroke-dasharray:{dash};stroke-linejoin:round"


def text(x: float, y: float, words: str, anchor: str = "start", fill: str = MUTED) -> str:
    """Returns one line of text on the baseline `y`; `anchor` is "start", "middle" or "end"."""
    style = f'text-anchor="{anchor}" font-size="12" style="fill:{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def text_width(words: str) -> float:
    """Returns about how wide a line of text is, in drawing units, erring on the wide side."""
    return sum(9.5 if c.isupper() else 6.8 for c in words)


def rule(x1: float, y1: float, x2: float, y2: float, style: str = f"stroke:{LINE}") -> str:
    """Returns a straight line; `style` is its CSS stroke."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" style="fill:none;{style}"/>'


def drawing(height: float, label: str, body: str) -> str:
    """Returns the whole SVG, `WIDTH` wide; `label` is what a screen reader says."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="100%" role="img" '
        f'aria-label="{escape(label)}" font-family="system-ui,sans-serif">{body}</svg>'
    )


def tiled(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of drawings as one SVG, each row as high as its highest drawing."""
    body, top = [], 0
    for row in rows:
        heights = [int(re.search(rf'viewBox="0 0 {WIDTH} (\d+)"', one).group(1)) for one in row]
        for column, (one, height) in enumerate(zip(row, heights, strict=True)):
            place = f'<svg x="{column * WIDTH}" y="{top}" height="{height}" '
            body.append(place + one.removeprefix("<svg ").replace('width="100%"', f'width="{WIDTH}"', 1))
        top += max(heights)
    size = f'viewBox="0 0 {WIDTH * max(map(len, rows))} {top}" width="100%"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{"".join(body)}</svg>'


def shorten(name: str, length: int) -> str:
    """Returns `name`, cut to `length` characters with an ellipsis."""
    return name if len(name) <= length else name[: length - 1] + "…"


def short_number(value: float, digits: int = 3) -> str:
    """Returns a number to `digits` significant digits: 0.0312, 4.4, 1234 (whole), 12k; "–" if it is not finite."""
    if not math.isfinite(value):
        return "–"
    for scale, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if scale <= abs(value) < 1e12:
            unit = 1e3 if suffix == "k" else scale
            return f"{value / unit:.{digits}g}{suffix}"
    if 10 ** (digits - 1) <= abs(value) < 1e4:
        return f"{value:.0f}"
    return f"{value:.{digits}g}"
