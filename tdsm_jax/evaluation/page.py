"""The frame of every page: one HTML file with its style, a header, links to its sections, no script, no network."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from tdsm_jax.evaluation import svg
from tdsm_jax.evaluation.report_style import STYLE
from tdsm_jax.evaluation.svg import escape


def page(title: str, opening: str, sections: Mapping[str, str]) -> str:
    """Returns the whole page; `opening` and the bodies of `sections` by name are HTML, the title plain text."""
    links = "".join(f'<a href="#{_anchor(name)}">{name}</a>' for name in sections)
    body = "".join(f'<section id="{_anchor(name)}"><h2>{name}</h2>{body}</section>' for name, body in sections.items())
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{svg.THEME}{STYLE}</style></head><body><main>"
        f"{opening}<nav>{links}</nav>{body}</main></body></html>\n"
    )


def header(title: str, lead: str) -> str:
    """Returns the title and what the page is about, both plain text, as a page opens."""
    over = '<p class="over">tdsm_jax report</p>'
    return f'<header>{over}<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], cell: Callable[[str], str] = escape) -> str:
    """Returns a table, on a phone one to scroll; the first cell of a row is its heading.

    All is plain text, of which `cell` makes the HTML of the other cells.
    """
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in headings)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{cell(text)}</td>" for text in others)}</tr>'
        for first, *others in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")
