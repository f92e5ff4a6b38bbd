"""Write README.md from nbs/index.ipynb, the same text on every machine, without Quarto.

    python tools/readme.py            # writes README.md

Understands the cell directives hide, include: false, echo: false, output: false; all
directive lines vanish. Links relative to nbs/ become relative to the repository root.
"""

import posixpath
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TARGET = "nbs/index.ipynb", "README.md"
BANNER = f"<!-- Made from {SOURCE} by tools/readme.py. Edit the notebook, then `make readme`. -->\n\n"
FENCES = re.compile(r"(^```.*?^```$)", re.S | re.M)
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.S | re.M)


def directives(source):
    "The `#| name: value` lines at the top of a cell as a dict, and the source without them."
    lines, found = source.splitlines(), {}
    while lines and lines[0].startswith("#|"):
        name, _, value = re.sub(r"^#\|\s*", "", lines.pop(0)).replace(":", " ", 1).partition(" ")
        found[name] = value.strip() or "true"
    return found, "\n".join(lines).strip("\n")


def from_root(markdown, folder):
    "Markdown whose relative links, written for a file in `folder`, hold from the root; code is left alone."
    def move(match):
        target = match[2]
        if re.match(r"[a-z][a-z0-9+.-]*:|[#/]", target, re.I): return match[0]
        return match[1] + posixpath.normpath(posixpath.join(folder, target))
    parts = CODE.split(markdown)
    parts[::2] = [re.sub(r"""(\]\(|\b(?:src|href)=")([^)\s"]+)""", move, p) for p in parts[::2]]
    return "".join(parts)


def render(path):
    "README text of the notebook at `path`."
    nb, cells = nbformat.read(path, as_version=4), []
    for cell in nb.cells:
        found, cell.source = directives(cell.source)
        if "hide" in found or "default_exp" in found or found.get("include") == "false": continue
        if cell.cell_type == "markdown": cell.source = from_root(cell.source, posixpath.dirname(SOURCE))
        if cell.cell_type == "code":
            if found.get("output") == "false": cell.outputs = []
            if any("image/png" in o.get("data", {}) and "text/markdown" not in o.data for o in cell.outputs):
                raise ValueError(f"{path}: a README cannot carry the image that cell {cell.get('id')} shows; "
                                 "commit the image and link it from a markdown cell, or mark the cell `#| output: false`")
            if found.get("echo") == "false": cell.metadata["transient"] = {"remove_source": True}  # nbconvert's own key
            elif not cell.source: continue
        cells.append(cell)
    nb.cells = cells
    nb.metadata["language_info"] = {"name": "python"}  # nbdev-clean drops it; it names the code fences
    exporter = MarkdownExporter()
    # Tables as markdown or text: GitHub does not show the style sheets of HTML tables.
    exporter.config.NbConvertBase.display_data_priority = ["text/markdown", "text/plain"]
    parts = FENCES.split(exporter.from_notebook_node(nb)[0])
    parts[::2] = [re.sub(r"\n\s*\n", "\n\n", p) for p in parts[::2]]  # outside code, one blank line at a time
    return BANNER + "".join(parts).strip() + "\n"


if __name__ == "__main__":
    (ROOT / TARGET).write_text(render(ROOT / SOURCE), encoding="utf-8")
    print(f"wrote {TARGET}")
