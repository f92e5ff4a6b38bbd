"""Write what the website shows and nobody should type: equations.md, and the figures of paper.md.

    python tools/site_pages.py            # writes; --check only compares

equations.md leads from each equation of the paper to the notebook that states it and to the code that names it in a
docstring, signature or comment ("Eq. 9", "Eq. 7 to 10"; equations of other papers carry their year and are left out),
and from each function back. Figures 1 and 3 are the outputs of nbs/03_discriminator.
"""

import ast
import base64
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EQUATIONS = range(1, 16)
FIGURES = {"figures/fig1.png": ("nbs/03_discriminator.ipynb", "Figure 1"), "figures/fig3.png": ("nbs/03_discriminator.ipynb", "Figure 3")}  # file: notebook, the caption below the picture begins with
ABOUT = {1: "the noised image", 2: "from one time to a later one", 3: "the denoising loss", 4: "the same over a batch", 5: "affinity matrix", 6: "structural guidance", 7: "the encoder's side",
         8: "the game", 9: "the encoder's step", 10: "the denoiser's step", 11: "the joint forward process", 12: "Bayes' rule for the joint score", 13: "the relations given the noised image", 14: "the relation loss", 15: "the bound"}
NUMBER = r"\d+[a-c]?"
MENTION = re.compile(rf"(?<!\d{{4}}, )\b(?:Eqs?\.|Equations?) ({NUMBER}(?:(?:, | and | or | to |-){NUMBER})*)(?! of (?:Ho|Song|Karras))")


def mentioned(text: str) -> set[int]:
    "The paper's equations that a text names: `Eq. 7 to 10` are four, `Eq. 13a` is a part of 13."
    found = set()
    for match in MENTION.finditer(text):
        parts = re.findall(rf"({NUMBER})(, | and | or | to |-)?", match[1])
        numbers = [int(re.match(r"\d+", n)[0]) for n, _ in parts]
        found |= set(numbers)
        for k, (_, joint) in enumerate(parts[:-1]):
            if joint in (" to ", "-"): found |= set(range(numbers[k], numbers[k + 1]))
    return found & set(EQUATIONS)


def markdown_cells(path: Path): return ["".join(c["source"]) for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "markdown"]


def stated() -> dict[int, list[tuple[str, str]]]:  # equation: (notebook, its section)
    "Where each equation is written out: its tag, or for want of one the first section of the notebooks that names it."
    tags, names = {n: [] for n in EQUATIONS}, {n: [] for n in EQUATIONS}
    for path in sorted((ROOT / "nbs").glob("[0-9]*.ipynb")):
        section = ""
        for text in markdown_cells(path):
            if heading := re.match(r"#+ (.+)", text): section = heading[1].strip()
            for n in {int(re.match(r"\d+", tag)[0]) for tag in re.findall(rf"\\tag\{{({NUMBER})\}}", text)}: tags[n].append((path.name, section))
            for n in mentioned(text): names[n].append((path.name, section))
    first = lambda places: list(dict.fromkeys(places))
    return {n: first(tags[n]) or first(names[n])[:1] for n in EQUATIONS}


def coded() -> dict[tuple[str, str], set[int]]:  # (notebook, module.name): equations
    "What each exported function, class or method names, its own inner definitions included with the outer."
    found = {}
    for path in sorted((ROOT / "sadm").glob("*.py")):
        text = path.read_text(encoding="utf-8")
        notebooks = [(m.start(), m[1]) for m in re.finditer(r"^# %% \.\./nbs/(\S+\.ipynb)", text, re.M)]
        if not notebooks: continue
        lines = text.splitlines(keepends=True)
        def visit(nodes, prefix):
            for node in nodes:
                if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or node.name.startswith("__") and node.name != "__init__": continue
                inner = [n for n in ast.iter_child_nodes(node) if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
                skip = {i for n in inner for i in range(n.lineno - 1, n.end_lineno)}
                own = "".join(line for i, line in enumerate(lines[node.lineno - 1:node.end_lineno], node.lineno - 1) if i not in skip)
                own = "\n".join([ast.get_docstring(node) or "", *re.findall(r"#(.*)", own)])  # what is said, not what is printed
                name = f"{prefix}{node.name}"
                if node.name == "__init__": name = prefix.rstrip(".")
                if equations := mentioned(own): found.setdefault((notebooks[0][1], f"{path.stem}.{name}"), set()).update(equations)
                visit(inner, f"{node.name}.")
        visit(ast.parse(text).body, "")
    return found


def numbers(found: set[int]) -> str: return ", ".join(f"[{n}](#eq-{n})" for n in sorted(found))


def equations_page() -> str:
    "The text of equations.md."
    where, code = stated(), coded()
    lines = ["# Equations", "", "<!-- Made by tools/site_pages.py from the notebooks and docstrings; `make export` writes it. -->", "",
             "Each equation of the paper: where a notebook states it, and which code says that it is it. Code is explained and tested on the page that the notebook's name leads to.", "",
             "| equation | | stated in | code |", "|---|---|---|---|"]
    for n in EQUATIONS:
        places = ", ".join(f"[{Path(name).stem}](nbs/{name}): {section}" for name, section in where[n])
        functions = ", ".join(f"[`{name}`](nbs/{notebook})" for (notebook, name), found in code.items() if n in found)
        lines.append(f'| <a id="eq-{n}"></a>{n} | {ABOUT[n]} | {places} | {functions} |')
    lines += ["", "## From the code back", "", "| code | equations |", "|---|---|", *(f"| [`sadm.{name}`](nbs/{notebook}) | {numbers(found)} |" for (notebook, name), found in code.items())]
    return "\n".join(lines) + "\n"


def figure(notebook: str, caption: str) -> bytes:
    "The picture above the caption that begins with these words."
    picture = None
    for cell in json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown" and text.lstrip("*").startswith(caption): return base64.b64decode(picture)
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}): picture = "".join(output["data"]["image/png"])
    raise ValueError(f"{notebook} has no caption that begins with {caption!r}")


def made() -> dict[str, bytes]:
    "All files, by path from the root."
    return {"equations.md": equations_page().encode()} | {name: figure(*source) for name, source in FIGURES.items()}


if __name__ == "__main__":
    stale = [name for name, content in made().items() if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != content]
    if "--check" in sys.argv: sys.exit(f"stale: {', '.join(stale)}; run `make export`" if stale else 0)
    for name in stale:
        (ROOT / name).parent.mkdir(exist_ok=True)
        (ROOT / name).write_bytes(made()[name])
    print(f"wrote {', '.join(stale) or 'nothing, all is current'}")
