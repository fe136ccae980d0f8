"""What the HTML pages have in common: their style, paragraphs and figures."""

import html
from collections.abc import Sequence

_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1c2530; }
body { margin: 0 auto; max-width: 1360px; padding: 1rem; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.25rem; margin-top: 2.5rem; }
h3 { font-size: 1rem; margin-bottom: .6rem; }
p { max-width: 75ch; } a { color: #1f5a99; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .8125rem; line-height: 1.35; }
caption { text-align: left; padding-bottom: .6rem; max-width: 95ch; }
th, td { padding: .35rem .3rem; text-align: left; vertical-align: top; }
thead th { border-bottom: 2px solid #1c2530; vertical-align: bottom;
  font-size: .75rem; }
tbody tr:first-child > * { border-top: 1px solid #c6ced6; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
td.command { padding-top: 0; }
code { font: .75rem/1.4 ui-monospace, monospace; color: #44505c; }
code, a { overflow-wrap: anywhere; }
td small { display: block; }
td:not(.number) { overflow-wrap: anywhere; }
td:nth-child(-n + 3):not(.number) { min-width: 5.5rem; }
.figures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; }
figure.wide { grid-column: 1 / -1; min-width: 0; overflow-x: auto; }
figure.wide figcaption { position: sticky; left: 0; }
img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: .8125rem; } summary { cursor: pointer; padding: .4rem 0; }
@media (max-width: 1330px) {
  table, caption, tbody, td { display: block; }
  thead { display: none; }
  tbody { border-top: 1px solid #c6ced6; padding: .5rem 0; }
  tbody tr:first-child > * { border: 0; }
  tr { display: grid; column-gap: 2rem;
    grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
  td, .number { text-align: left; padding: .15rem 0; }
  td:not(.command) { display: grid; grid-template-columns: 11rem 1fr; gap: .75rem; }
  td:not(.command)::before { content: attr(data-label); color: #44505c; }
  td.command { grid-column: 1 / -1; padding-top: .3rem; }
}
@media (max-width: 720px) { figure.wide img { width: 720px; max-width: none; } }
"""


def document(title: str, parts: Sequence[str], style: str = "") -> str:
    """Returns a page that loads nothing from elsewhere.

    Args:
      title: of the window.
      parts: HTML, one below the other.
      style: CSS beyond that of all pages.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n"
        "</head>\n<body>\n" + "\n".join(parts) + "\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Returns text as a paragraph, nothing for no text."""
    return f"<p>{html.escape(text)}</p>" if text else ""


def wide_figure(uri: str, caption: str, alt: str) -> str:
    """Returns a :func:`figure` that has a line of the page for itself."""
    return figure(uri, caption, alt).replace("<figure>", '<figure class="wide">', 1)


def figure(uri: str, caption: str, alt: str) -> str:
    """Returns a picture with a caption below it."""
    return (
        f'<figure><img src="{uri}" alt="{html.escape(alt)}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )
