"""The site, as far as it can be looked at without Quarto: links, pictures, formulas; and some pages in a real browser.

Quarto itself is first run by the workflow `docs`."""

import base64
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(p.relative_to(ROOT) for d in ("nbs", "reproduce") for p in (ROOT / d).glob("*.ipynb"))
TEXTS = [Path("paper.md"), Path("equations.md"), Path("inconsistencies.md"), *sorted(p.relative_to(ROOT) for p in (ROOT / "howto").glob("*.md"))]
CODE = re.compile(r"(^```.*?^```$|`[^`\n]*`)", re.S | re.M)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    "nbdev's pages, from a copy: what Quarto is given."
    copy = tmp_path_factory.mktemp("site")
    for name in ("pyproject.toml", "settings.ini", "_quarto.yml", "paper.md", "equations.md", "inconsistencies.md"): shutil.copy2(ROOT / name, copy)
    for name in ("nbs", "reproduce", "sadm", "howto", "figures"): shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)"], cwd=copy, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "_proc"


def written(path: Path) -> str:
    "What people wrote on a page, code left out."
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb": text = "\n\n".join("".join(c["source"]) for c in json.loads(text)["cells"] if c["cell_type"] == "markdown")
    return "".join(CODE.split(text)[::2])


def links(text: str) -> list[str]: return [a or b for a, b in re.findall(r"""\]\(([^)\s]+)\)|(?:src|href)=["']([^"']+)""", text)]


def identifiers(text: str) -> set[str]:
    "What a link on the site can point at within a page: headings as Pandoc names them, and anchors."
    plain = lambda heading: re.sub(r"^[^a-z]+", "", re.sub(r"\s+", "-", re.sub(r"[^\w\s.-]", "", heading.replace("`", "").lower()).strip()))
    return {plain(heading) for heading in re.findall(r"^#+ (.+)$", text, re.M)} | set(re.findall(r"""\bid=["']([^"']+)""", text))


def dead(folder: Path, page: Path) -> list[str]:
    "Internal links of a page that lead nowhere."
    wrong, here = [], written(folder / page)
    for link in links(here):
        if re.match(r"[a-z][a-z0-9+.-]*:", link): continue
        target, _, fragment = link.partition("#")
        path = folder / page.parent / target if target else folder / page
        if not path.exists(): wrong.append(link)
        elif fragment and fragment not in identifiers(written(path)): wrong.append(link)
    return wrong


def test_the_check_of_links_finds_dead_ones(tmp_path):
    (tmp_path / "a.md").write_text("# One thing\n[good](b.md#two-things) [bad](c.md) [worse](b.md#three) [code](a.md#one-thing) `[no](link.md)` [out](https://x.org/nothing)")
    (tmp_path / "b.md").write_text('# Two *things*!\n<a id="x"></a>')
    assert dead(tmp_path, Path("a.md")) == ["c.md", "b.md#three"]


@pytest.mark.parametrize("page", NOTEBOOKS + TEXTS, ids=lambda p: p.as_posix())
def test_internal_links_lead_somewhere(page, pages):
    assert (ROOT / page).exists()
    # what nbdev does not copy (data/, CONTRIBUTING.md) is on GitHub beside the page
    assert dead(ROOT, page) == []
    if page.suffix == ".ipynb":
        moved = [link for link in dead(pages, page) if not (ROOT / page.parent / link.partition("#")[0]).exists()]
        assert moved == [], "nbdev changed a link"


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda p: p.as_posix())
def test_pages_keep_pictures_and_their_texts(page, pages):
    "As many pictures as the notebook shows, each with the alternative text it was given."
    cells = lambda path: [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]
    drawn = lambda path: [c for c in cells(path) if any("image/png" in o.get("data", {}) for o in c["outputs"])]
    hidden = lambda c: re.search(r"^#\| ?hide\b", "".join(c["source"]), re.M)
    ours, theirs = [c for c in drawn(ROOT / page) if not hidden(c)], drawn(pages / page)
    assert len(theirs) == len(ours)
    alts = lambda found: [m[1] for c in found for m in re.finditer(r'#\| ?fig-alt: "(.*)"', "".join(c["source"]))]
    assert alts(theirs) == alts(ours)
    for c in theirs:
        for o in c["outputs"]:
            if "image/png" in o.get("data", {}): assert base64.b64decode("".join(o["data"]["image/png"])).startswith(b"\x89PNG")


def test_functions_have_their_reference(pages):
    "nbdev's show_doc: the signature, with the shapes that the comments give."
    text = "\n".join("".join(c["source"]) + json.dumps(c.get("outputs", "")) for c in json.loads((pages / "nbs/03_discriminator.ipynb").read_text())["cells"])
    for wanted in ("StructuralLoss", "signal_weight", "(B,) noise level sigma_t / alpha_t", "show_doc(StructuralLoss)"): assert wanted in text, wanted


def test_every_equation_is_stated_and_has_code():
    sys.path.insert(0, str(ROOT / "tools"))
    try: import site_pages
    finally: sys.path.remove(str(ROOT / "tools"))
    where, named = site_pages.stated(), set().union(*site_pages.coded().values())
    assert all(where[n] for n in range(1, 16)), "an equation that no notebook states"
    assert set(range(1, 16)) - named <= {8, 11, 15}, "8 is the game of 7, 9 and 10; 11 and 15 are derived in nbs/13, nothing computes them"
    assert site_pages.mentioned("Eq. 7 to 10 and Ho et al. (2020, Eq. 5)") == {7, 8, 9, 10} and site_pages.mentioned("Eq. 13a, Eq. 4, 6 or 9") == {13, 4, 6, 9}


def test_the_sidebar_leads_to_pages():
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    entries = [e for section in quarto["website"]["sidebar"]["contents"] for e in ([section["contents"]] if isinstance(section["contents"], str) else section["contents"])]
    entries += [item["href"] for item in quarto["website"]["navbar"]["left"]] + quarto["project"]["render"] + quarto["project"]["resources"]
    assert not [e for e in entries if not list(ROOT.glob(e))]
    assert quarto["format"]["html"]["html-math-method"] == "mathml" and quarto["website"]["search"] is True


# ---------------------------------------------------------------- formulas

FORMULA = re.compile(r"\$\$(.+?)\$\$|(?<![\\$\w])\$(?!\s)([^$\n]+?(?:\n[^$\n]+?)?)(?<!\s)\$(?![\d$])", re.S)


def mathml(text: str) -> tuple[str, int]:
    "Markdown with its formulas as MathML (Pandoc's work on the site), and how many there were."
    from latex2mathml.converter import convert
    count = 0
    def formula(match):
        nonlocal count
        count += 1
        tex = re.sub(r"\\(?:qquad|quad)?\s*\\?tag\{[^}]*\}|\\tag\{[^}]*\}", "", match[1] or match[2])
        return convert(tex, display="block" if match[1] else "inline").replace("\n", " ")
    parts = CODE.split(text)
    parts[::2] = [FORMULA.sub(formula, part) for part in parts[::2]]
    return "".join(parts), count


@pytest.mark.parametrize("page", NOTEBOOKS + TEXTS, ids=lambda p: p.as_posix())
def test_formulas_are_well_formed(page):
    pytest.importorskip("latex2mathml")
    text = written(ROOT / page)
    made, count = mathml(text)
    assert count == made.count("<math") and "<merror" not in made
    left = FORMULA.sub("", text)
    assert left.count("$") - left.count("\\$") - len(re.findall(r"\$[A-Z_]{2,}", left)) == 0, "a dollar sign that opens no formula"


# ---------------------------------------------------------------- a browser

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
LOOK = """<script>
const errors = [];
addEventListener("error", e => errors.push(e.message || "not loaded: " + (e.target.src || e.target.href)), true);
addEventListener("load", () => setTimeout(() => {
  const seen = [...document.images].map(i => i.complete && i.naturalWidth > 0), size = m => { const b = m.getBoundingClientRect(); return b.width > 2 && b.height > 2; };
  const formulas = [...document.querySelectorAll("math")];
  document.title = "LOOKED " + JSON.stringify({errors, pictures: seen.length, shown: seen.filter(Boolean).length, formulas: formulas.length, drawn: formulas.filter(size).length,
    wide: document.documentElement.scrollWidth > innerWidth * 1.5, alts: [...document.images].filter(i => i.alt).length});
}, 200));
</script>"""


def look(body: str, folder: Path) -> tuple[dict, list[str]]:
    "A page in headless Chromium without a network: what it counted, and errors on the console."
    (folder / "page.html").write_text(body.replace("</head>", LOOK + "</head>", 1), encoding="utf-8")
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", f"--user-data-dir={folder / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
               "--virtual-time-budget=8000", "--dump-dom", f"file://{folder / 'page.html'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    title = re.search(r"<title>LOOKED (.*?)</title>", done.stdout, re.S)
    assert title, done.stderr[-3000:]
    return json.loads(html.unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line and ("rror" in line or "Refused" in line)]


in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt install chromium")


@in_browser
def test_the_browser_notices_what_is_wrong(tmp_path):
    seen, console = look('<html><head><title>x</title></head><body><img src="nowhere.png"><math><mi>x</mi></math><math style="display:none"><mi>x</mi></math><script>undefined_name()</script></body></html>', tmp_path)
    assert seen["pictures"] == 1 and seen["shown"] == 0 and (seen["formulas"], seen["drawn"]) == (2, 1) and len(seen["errors"]) == 2 and console


@in_browser
@pytest.mark.parametrize("page", ["nbs/00_diffusion.ipynb", "nbs/03_discriminator.ipynb", "nbs/index.ipynb", "reproduce/table5.ipynb"])
def test_a_browser_shows_the_page(page, tmp_path):
    "nbconvert's rendering, formulas as MathML, in headless Chromium without a network: pictures there, formulas drawn, nothing complained of."
    pytest.importorskip("latex2mathml")
    from bs4 import BeautifulSoup
    from nbconvert import HTMLExporter
    nb, formulas, pictures = nbformat.read(ROOT / page, as_version=4), 0, 0
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            cell.source, n = mathml(cell.source)
            formulas += n
        else:
            alt = re.match(r'#\| fig-alt: "(.*)"', cell.source)
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    pictures += 1
                    if alt: output.setdefault("metadata", {})["image/png"] = {"alt": alt[1]}
    body = HTMLExporter().from_notebook_node(nb)[0]
    soup = BeautifulSoup(body, "html.parser")
    for script in soup.head("script"): script.decompose()  # nbconvert's MathJax and require.js, which the site does not have
    body = str(soup)
    assert not soup.select("script[src], iframe[src], img[src^=http]")
    seen, console = look(body, tmp_path)
    assert not seen["errors"] and not console, (seen["errors"], console)
    assert seen["pictures"] == seen["shown"] and seen["shown"] >= pictures and seen["alts"] >= pictures
    assert seen["formulas"] == seen["drawn"] == formulas and not seen["wide"]
    assert formulas or page == "nbs/index.ipynb"
