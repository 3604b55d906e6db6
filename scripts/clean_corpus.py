#!/usr/bin/env python3
"""Turn unpacked Debian packages of documentation and text into clean JSON lines.

    clean_corpus.py PACKAGES_DIR OUT_DIR

PACKAGES_DIR has one folder per package, as `dpkg-deb -x` leaves it. OUT_DIR gets one folder per
domain with a file per package; each line is {"text": ...}, one document. Called by
fetch_corpus.sh.
"""

from __future__ import annotations

import argparse
import gzip
import html.parser
import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

PAGE_BYTES = 4096  # short entries (dictionary, glosses) are gathered up to this size
SMALLEST = 200  # shorter documents are left out
LARGEST = 16384  # longer ones become several, so that a validation split is not one book


def read_text(path: Path) -> str:
    """The text of a file, gunzipped if need be; bytes that are no UTF-8 are read as Latin-1."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def tidy(text: str) -> str:
    """No trailing spaces, no control characters, at most one blank line in a row."""
    text = text.replace("\r\n", "\n").replace("\u00a0", " ").replace("\u00ad", "")
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\ufeff]", "", text)
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def unwrap(text: str) -> str:
    """Paragraphs (set apart by blank lines) as one line each."""
    paragraphs = re.split(r"\n[ \t]*\n", text)
    return "\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def pages(entries: Iterable[str], separator: str = "\n") -> Iterator[str]:
    """Neighbouring short entries joined into documents of about PAGE_BYTES."""
    page: list[str] = []
    size = 0
    for entry in entries:
        if page and size + len(entry) > PAGE_BYTES:
            yield separator.join(page)
            page, size = [], 0
        page.append(entry)
        size += len(entry)
    if page:
        yield separator.join(page)


def parts(text: str) -> Iterator[str]:
    """A long text in parts of up to LARGEST characters that end with a paragraph or a line."""
    while len(text) > LARGEST:
        cut = text.rfind("\n\n", LARGEST // 2, LARGEST)
        if cut < 0:
            cut = text.rfind("\n", LARGEST // 4, LARGEST)
        if cut < 0:
            cut = LARGEST
        yield text[:cut]
        text = text[cut:].lstrip("\n")
    yield text


# ---- dictionaries in dictd's format: a text file and an index of its entries ----


def dict_number(digits: str) -> int:
    value = 0
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    for digit in digits:
        value = value * 64 + alphabet.index(digit)
    return value


def dict_entries(folder: Path) -> Iterator[str]:
    """Entries in the order of the file, each once."""
    for index in sorted(folder.glob("usr/share/dictd/*.index")):
        data = gzip.decompress(index.with_suffix(".dict.dz").read_bytes())
        spans = set()
        for line in index.read_text("utf-8", errors="replace").splitlines():
            headword, offset, size = line.split("\t")[:3]
            if not headword.startswith("00"):
                spans.add((dict_number(offset), dict_number(size)))
        for offset, size in sorted(spans):
            entry = clean_entry(data[offset : offset + size].decode("utf-8", errors="replace"))
            if entry:
                yield entry


def clean_entry(entry: str) -> str:
    entry = re.sub(r"\[(1913 Webster|PJC|Webster 1913 Suppl\.|WordNet 1\.5|Century Dict\.[^\]]*)"
                   r"( \+[^\]]*)?\]", "", entry)
    entry = re.sub(r"\\[^\\\n]*\\ ?", "", entry, count=1)  # pronunciation after the headword
    entry = re.sub(r"\((\d{4}-\d{2}-\d{2})\)", "", entry)
    entry = re.sub(r"[{}]", "", entry)
    return unwrap(entry)


def dictionary(folder: Path) -> Iterator[str]:
    return pages(dict_entries(folder), "\n\n")


# ---- the King James Bible in the packed file of bible-kjv ----


def bible(folder: Path) -> Iterator[str]:
    """One chapter per document. The file is a header with a table of offsets, then windows packed
    by `compress`, each without that format's three first bytes."""
    data = (folder / "usr/lib/bible.data").read_bytes()
    (windows,) = struct.unpack(">I", data[0x58:0x5C])
    offsets = struct.unpack(f">{windows + 1}I", data[0x5C : 0x60 + 4 * windows])
    text = b""
    for begin, end in zip(offsets, offsets[1:]):
        packed = b"\x1f\x9d\x90" + data[begin:end]
        window = subprocess.run(["gzip", "-dc"], input=packed, capture_output=True, check=True)
        text += window.stdout
    chapter, verses = "", []
    for line in text.decode("latin-1").splitlines():
        match = re.match(r"(\S+?)(\d+):(\d+) (.*)", line)
        if not match:
            continue
        name = f"{match[1]} {match[2]}"
        if name != chapter and verses:
            yield "\n".join(verses)
            verses = []
        chapter = name
        verses.append(match[4].strip())
    yield "\n".join(verses)


# ---- WordNet ----


def wordnet(folder: Path) -> Iterator[str]:
    def glosses() -> Iterator[str]:
        for part in ("noun", "verb", "adj", "adv"):
            path = folder / "usr/share/wordnet" / f"data.{part}"
            for line in path.read_text("utf-8", errors="replace").splitlines():
                if line.startswith(" ") or " | " not in line:
                    continue
                head, gloss = line.split(" | ", 1)
                fields = head.split(" ")
                count = int(fields[3], 16)
                words = (re.sub(r"\(\w+\)$", "", w) for w in fields[4 : 4 + 2 * count : 2])
                yield f"{', '.join(words).replace('_', ' ')}: {gloss.strip()}"

    return pages(glosses())


# ---- markup ----


class HtmlText(html.parser.HTMLParser):
    """Text of the body with line breaks where blocks end."""

    BLOCKS = {"p", "div", "li", "dt", "dd", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "br",
              "table", "ul", "ol", "dl", "blockquote", "section"}
    HIDDEN = {"script", "style", "head", "nav", "header", "footer"}

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.hidden = 0
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.HIDDEN:
            self.hidden += 1
        if tag == "pre":
            self.pre += 1
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.HIDDEN:
            self.hidden = max(0, self.hidden - 1)
        if tag == "pre":
            self.pre = max(0, self.pre - 1)
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))


def from_html(text: str) -> str:
    parser = HtmlText()
    parser.feed(text)
    return re.sub(r"\n +", "\n", "".join(parser.parts))


def from_rst(text: str) -> str:
    directive = r"^\.\. (?!note|warning|important|caution).*\n((?:[ \t]+.*)?\n)*"
    text = re.sub(directive, "", text, flags=re.M)
    text = re.sub(r":[a-z:]+:`~?([^`<]+?)(?: <[^>]+>)?`", r"\1", text)
    text = re.sub(r"`([^`<]+?)(?: <[^>]+>)?`_+", r"\1", text)
    text = re.sub(r"``([^`]+)``", r"\1", text)
    text = re.sub(r"^[=\-~^\"'#*+.]{3,}\s*$\n?", "", text, flags=re.M)
    return text.replace("**", "").replace("::\n", ":\n")


def from_markdown(text: str) -> str:
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"^#+ *", "", text, flags=re.M)
    text = re.sub(r"^> ?", "", text, flags=re.M)
    text = re.sub(r"(?<!\w)[_*]{1,3}|[_*]{1,3}(?!\w)", "", text)
    return unwrap(text)


def from_pod(text: str) -> str:
    text = re.sub(r"^=begin\b.*?^=end\b.*?$", "", text, flags=re.M | re.S)
    text = re.sub(r"^=for\b.*\n(.+\n)*", "", text, flags=re.M)
    text = re.sub(r"^=(head\d|item|over|back|cut|pod|encoding)\b *", "", text, flags=re.M)
    for _ in range(3):  # codes nest
        text = re.sub(r"[BCFISX]<<+ (.*?) >>+", r"\1", text)
        text = re.sub(r"L<(?:([^|<>]*)\|)?([^<>]*)>", lambda m: m[1] or m[2], text)
        text = re.sub(r"[BCFISX]<([^<>]*)>", r"\1", text)
    return re.sub(r"E<(lt|gt)>", lambda m: "<" if m[1] == "lt" else ">", text)


ROFF_MACRO = re.compile(
    r"[.'] *(SH|SS|TP|IP|PP|P|LP|B|I|BR|RB|BI|IB|IR|RI|SM|TQ|UR|MT)\b *(.*)")
ROFF_CHARACTERS = {
    r"\-": "-", r"\e": "\\", r"\(aq": "'", r"\(dq": '"', r"\(bu": "*", r"\(em": "-", r"\(en": "-",
    r"\(lq": '"', r"\(rq": '"', r"\(co": "(c)", r"\(ha": "^", r"\(ti": "~", r"\ ": " ",
    r"\[aq]": "'", r"\(ga": "`"}


def from_roff(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if re.match(r"[.']\\\"|^'\\\"", line):
            continue
        match = ROFF_MACRO.match(line)
        if line.startswith((".", "'")):
            if not match:
                continue
            if match[1] in ("SH", "SS", "TP", "IP", "PP", "P", "LP"):
                lines.append("")
            line = match[2].replace('"', "")
            if match[1] in ("BR", "RB", "BI", "IB", "IR", "RI"):
                line = re.sub(r"(?<!\\) ", "", line)
            if match[1] == "IP":
                line = line.rsplit(" ", 1)[0]
        lines.append(line)
    text = "\n".join(lines)
    text = re.sub(r"\\f[A-Z]|\\f\([A-Z]{2}|\\f\[\w*\]|\\[&/,|^]|\\s[+-]?\d", "", text)
    for code, plain in ROFF_CHARACTERS.items():
        text = text.replace(code, plain)
    text = re.sub(r"\\[\(\[*].{0,3}", "", text)
    return unwrap(text)


def asciidoc(text: str) -> str:
    text = re.sub(r"^(ifdef|ifndef|endif|include)::.*$\n?", "", text, flags=re.M)
    text = re.sub(r"^[=\-~^+*_.]{4,}\s*$\n?", "", text, flags=re.M)
    text = re.sub(r"linkgit:([\w-]+)\[(\d)\]", r"\1", text)
    return re.sub(r"^(\[\[.*\]\]|\[[a-z]+\]|\+)\s*$\n?", "", text, flags=re.M)


def files(folder: Path, pattern: str, skip: str = "(?!)") -> Iterator[Path]:
    for path in sorted(folder.glob(pattern)):
        if path.is_symlink() or not path.is_file():
            continue
        if not re.search(skip, str(path.relative_to(folder))):
            yield path


def converted(pattern: str, convert: Callable[[str], str],
              skip: str = "(?!)") -> Callable[[Path], Iterator[str]]:
    def documents(folder: Path) -> Iterator[str]:
        for path in files(folder, pattern, skip):
            yield convert(read_text(path))

    return documents


DOC = "usr/share/doc"
# package (without its version) → (domain, reader)
READERS = {
    "dict-gcide": ("dictionary", dictionary),
    "dict-foldoc": ("dictionary", dictionary),
    "dict-jargon": ("dictionary", dictionary),
    "dict-vera": ("dictionary", dictionary),
    "bible-kjv-text": ("bible", bible),
    "wordnet-base": ("glosses", wordnet),
    "debian-reference-en":
        ("handbook", converted("usr/share/debian-reference/ch*.en.html", from_html)),
    "debian-policy":
        ("handbook", converted(f"{DOC}/debian-policy/**/_sources/*.rst.txt", from_rst)),
    "developers-reference":
        ("handbook", converted("usr/share/developers-reference/_sources/*.rst.txt", from_rst)),
    "harden-doc": ("handbook", converted(f"{DOC}/harden-doc/html/en-US/*.html", from_html)),
    "debian-faq": ("handbook", converted(f"{DOC}/debian/FAQ/*.en.html", from_html)),
    "perl-doc":
        ("manual", converted("usr/share/perl/*/pod/*.pod", from_pod, r"/perl(ko|jp|cn|tw)\.pod")),
    "git-doc": ("manual", converted(f"{DOC}/git-doc/**/*.txt", asciidoc, "RelNotes")),
    "manpages": ("manual", converted("usr/share/man/man[1-8]/*.gz", from_roff)),
    "manpages-dev": ("manual", converted("usr/share/man/man[1-8]/*.gz", from_roff)),
    "linux-doc":
        ("kernel",
         converted(f"{DOC}/linux-doc-*/html/_sources/**/*.rst.txt", from_rst, "translations/")),
    "anarchism": ("essay", converted(f"{DOC}/anarchism/markdown/*.md*", from_markdown)),
    "libpython-stdlib":
        ("python", converted("usr/lib/python3*/**/*.py", str, r"lib2to3/tests|/test/")),
    "python3-django":
        ("python",
         converted("usr/lib/python3/dist-packages/django/**/*.py", str, "conf/locale")),
}


def family(package: str) -> str:
    """linux-doc-6.1 → linux-doc, libpython3.11-stdlib → libpython-stdlib."""
    package = re.sub(r"^(linux-doc)-[\d.]+$", r"\1", package)
    return re.sub(r"^(libpython)[\d.]+(-stdlib)$", r"\1\2", package)


def write_documents(documents: Iterable[str], target: Path) -> tuple[int, int]:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    count = size = 0
    with partial.open("w", encoding="utf-8") as out:
        for document in documents:
            clean = tidy(document).encode("utf-8", errors="ignore").decode("utf-8")
            for text in parts(clean):
                if len(text) < SMALLEST:
                    continue
                out.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
                count += 1
                size += len(text.encode("utf-8"))
    os.replace(partial, target)
    return count, size


def clean_package(job: tuple[Path, Path]) -> tuple[str, str, str, int, int]:
    folder, out = job
    domain, documents = READERS[family(folder.name)]
    target = out / domain / f"{family(folder.name)}.jsonl"
    count, size = write_documents(documents(folder), target)
    return folder.name, domain, str(target.relative_to(out)), count, size


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packages", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    folders = sorted(p for p in args.packages.iterdir() if p.is_dir())
    unknown = [f.name for f in folders if family(f.name) not in READERS]
    if unknown:
        print(f"no reader for the packages {', '.join(unknown)}", file=sys.stderr)
        return 1
    empty = 0
    with multiprocessing.Pool() as pool:
        jobs = pool.imap(clean_package, [(folder, args.out) for folder in folders])
        for number, (package, domain, file, count, size) in enumerate(jobs, 1):
            progress = f"[{number}/{len(folders)}] {package}"
            print(f"{progress}: {count} documents, {size / 1e6:.1f} MB", file=sys.stderr)
            print(f"{package}\t{domain}\t{file}\t{count}\t{size}")
            if count == 0:
                print(f"{package}: no text found; has its layout changed?", file=sys.stderr)
                empty += 1
    return 1 if empty else 0


if __name__ == "__main__":
    sys.exit(main())
