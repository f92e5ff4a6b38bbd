"""Make a rendered site independent of other hosts: `python tools/offline_site.py _docs`.

Quarto adds require.js and jQuery from a CDN to every page that shows an HTML output (a pandas
table is enough; its src/core/jupyter/widgets.ts has no option against it). Nothing here needs
them, so they are taken out. Any other script, style sheet, font or image from another host is
an error: it means that a notebook or a setting brought it in.
"""

import re
import sys
from pathlib import Path

UNUSED = re.compile(
    r"""<script[^>]*\bsrc="https://cdnjs\.cloudflare\.com/ajax/libs/(?:require\.js|jquery)/[^"]*"[^>]*>\s*</script>\s*"""
    r"""|<script[^>]*>define\('jquery', *\[\], *function\(\) *\{return window\.jQuery;\}\)</script>\s*""")
FOREIGN = re.compile(
    r"""<(?:script|img|iframe|source|video|audio|embed)\b[^>]*\bsrc=["']?((?:https?:)?//[^"'\s>]+)"""
    r"""|<link\b(?=[^>]*\brel=["']?(?:stylesheet|preload|modulepreload|icon))[^>]*\bhref=["']?((?:https?:)?//[^"'\s>]+)""", re.I)


def offline(page):
    "The page without the unused scripts, and the addresses on other hosts that it would still load."
    page = UNUSED.sub("", page)
    # code listings may name such tags as text, escaped: they start with &lt; and do not match
    return page, [a or b for a, b in FOREIGN.findall(page)]


if __name__ == "__main__":
    wrong, pages = [], sorted(Path(sys.argv[1]).rglob("*.html"))
    if not pages: sys.exit(f"no pages below {sys.argv[1]}")
    for path in pages:
        page, foreign = offline(path.read_text(encoding="utf-8"))
        path.write_text(page, encoding="utf-8")
        wrong += [f"{path}: {address}" for address in foreign]
    if wrong: sys.exit("loaded from other hosts:\n" + "\n".join(wrong))
    print(f"{len(pages)} pages, nothing loaded from other hosts")
