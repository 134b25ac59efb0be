"""MkDocs hook: the measured results under bench/ are pages and figures of the site too.

They stay where the benches write them. A link out of docs/ begins with ../bench/, as GitHub needs
it; on the site the same file lies below bench/.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
SHOWN = (
    "bench/client/README.md",
    "bench/results/**/*.md",
    "bench/results/**/*.png",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the results to the files that MkDocs builds."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links at where the results lie on the site."""
    return markdown.replace("](../bench/", "](bench/")
