"""A report's Markdown as one HTML page that needs no other file: contents, sections that open when
asked, legible on a phone and in the dark."""

from __future__ import annotations

import base64
import html
import itertools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

STYLE = """
:root{color-scheme:light dark;--ink:#1c2126;--dim:#5c646c;--page:#fff;--card:#f2f3f4;--line:#c4c9ce;
--link:#0061a1}
@media(prefers-color-scheme:dark){:root{--ink:#dfe3e8;--dim:#9aa3ac;--page:#0f1317;--card:#1b2128;
--line:#3d4650;--link:#56b4e9}img{filter:brightness(.88)}}
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:var(--ink);background:var(--page);overflow-wrap:anywhere}
a{color:var(--link)}h1{line-height:1.2}h2{margin:2.2rem 0 .6rem}
h1~ul:first-of-type{background:var(--card);border-left:4px solid var(--link);
padding:.8rem 1rem .8rem 2rem}
nav ul{columns:16rem;list-style:none;padding:0}
table{border-collapse:collapse;display:block;overflow-x:auto;overflow-wrap:normal;
font-variant-numeric:tabular-nums}
td,th{border:1px solid var(--line);padding:.2rem .6rem;text-align:left}
td{white-space:nowrap}th{background:var(--card)}
img{max-width:100%;height:auto;background:#fff}
pre{background:var(--card);padding:.6rem;overflow-x:auto}
summary{cursor:pointer;margin:2.2rem 0 .6rem}summary h2{display:inline;margin:0}
.top{scroll-margin-top:5rem}
@media(max-width:40rem){body{margin:1rem auto;padding:0 .75rem}h1{font-size:1.6rem}
h2{font-size:1.25rem}th{white-space:normal}}
@media print{details::details-content{content-visibility:visible;block-size:auto}nav{display:none}}
"""
PHONE = "(max-width: 40rem)"


def page(
    title: str,
    markdown: str,
    folder: Path,
    closed: Collection[str] = (),
    narrow: Mapping[str, bytes] | None = None,
) -> str:
    """`closed`: titles of the sections that open when asked. `narrow`: a picture's path → a PNG for
    a phone. Pictures of `folder` are embedded: OSError if one cannot be read."""
    renderer = _renderer(folder, narrow or {})
    lead, *sections = _split(renderer.parse(markdown))
    named = {_words(section[1]): _html(renderer, section[3:]) for section in sections}
    body = [_html(renderer, lead), _contents(named)]
    body += [_section(name, inner, closed=name in closed) for name, inner in named.items()]
    head = "".join(
        [
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
        ]
    )
    inner = "\n".join(body)
    return f'<!doctype html><html lang="en"><head>{head}</head>\n<body>\n{inner}\n</body></html>\n'


def _renderer(folder: Path, narrow: Mapping[str, bytes]) -> MarkdownIt:
    from markdown_it import MarkdownIt

    def image(_: object, tokens: Sequence[Token], at: int, *__: object) -> str:
        path, alt = str(tokens[at].attrGet("src")), html.escape(_words(tokens[at]))
        drawn = f'<img src="{_embedded((folder / path).read_bytes())}" alt="{alt}">'
        if path not in narrow:
            return drawn
        source = f'<source media="{PHONE}" srcset="{_embedded(narrow[path])}">'
        return f"<picture>{source}{drawn}</picture>"

    renderer = MarkdownIt("commonmark", {"html": False}).enable("table")
    renderer.add_render_rule("image", image)
    return renderer


def _split(tokens: Sequence[Token]) -> list[Sequence[Token]]:
    """What stands before the first section, then each section; three tokens are its heading."""
    starts = [i for i, one in enumerate(tokens) if (one.type, one.tag) == ("heading_open", "h2")]
    return [tokens[a:b] for a, b in itertools.pairwise([0, *starts, len(tokens)])]


def _words(token: Token) -> str:
    return "".join(child.content for child in token.children or [])


def _html(renderer: MarkdownIt, tokens: Sequence[Token]) -> str:
    return str(renderer.renderer.render(tokens, renderer.options, {}))


def _contents(titles: Iterable[str]) -> str:
    links = "".join(f'<li><a href="#{_anchor(t)}">{html.escape(t)}</a></li>' for t in titles)
    return f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if links else ""


def _section(title: str, inner: str, *, closed: bool) -> str:
    """A link leads inside a closed section: that is what makes a browser open it."""
    head, named = f"<h2>{html.escape(title)}</h2>", f'class="top" id="{_anchor(title)}"'
    if closed:
        return f"<details><summary>{head}</summary><div {named}>\n{inner}</div></details>"
    return f"<section {named}>{head}\n{inner}</section>"


def _anchor(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower()).strip("-")


def _embedded(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
