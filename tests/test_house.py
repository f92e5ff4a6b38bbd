"""The house is in order: what is generated is current, configuration agrees, notebooks are fit to commit."""

import ast
import configparser
import fnmatch
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = Path(sys.executable).parent  # nbdev's commands stand beside the Python that runs the tests
NOTEBOOKS = sorted(p.relative_to(ROOT) for d in ("nbs", "reproduce") for p in (ROOT / d).glob("*.ipynb"))
REPRODUCE = [p for p in NOTEBOOKS if p.parts[0] == "reproduce"]
named = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)


def cells(notebook, kind="code"):
    nb = json.loads((ROOT / notebook).read_text(encoding="utf-8"))
    return [c for c in nb["cells"] if c["cell_type"] == kind]


def committed():
    "Every file that git has or would take, as it stands in the working tree."
    out = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         cwd=ROOT, capture_output=True, check=True).stdout
    return [ROOT / name for name in out.decode().split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev works on; the working tree is never written to."
    for name in ("pyproject.toml", "settings.ini", "_quarto.yml"): shutil.copy2(ROOT / name, tmp_path)
    for name in ("nbs", "reproduce", "sadm"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return tmp_path


def nbdev(folder, *command):
    # nbdev-test sets IN_TEST for what it starts, and with IN_TEST nbdev-export does nothing.
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    done = subprocess.run([TOOL / command[0], *command[1:]], cwd=folder, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def files(folder, suffix):
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*" + suffix))}


def differing(old, new):
    return sorted(n for n in old.keys() | new.keys() if old.get(n) != new.get(n))


# ---------------------------------------------------------------- configuration

def settings():
    "settings.ini and pyproject.toml as two flat dicts of strings, lists written with spaces."
    ini = configparser.ConfigParser()
    ini.read(ROOT / "settings.ini", encoding="utf-8")
    toml = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project, version = toml["project"], re.search(r'__version__ = "(.+)"', (ROOT / "sadm/__init__.py").read_text())[1]
    other = dict(lib_name=project["name"], version=version, description=project["description"], license=project["license"],
                 keywords=", ".join(project["keywords"]), author=project["authors"][0]["name"],
                 min_python=project["requires-python"].removeprefix(">="))
    as_text = lambda v: " ".join(v) if isinstance(v, list) else str(v)
    return dict(ini["DEFAULT"]), {k: as_text(v) for k, v in (other | toml["tool"]["nbdev"]).items()}


def test_settings_ini_agrees_with_pyproject():
    ini, toml = settings()
    assert not [(k, ini[k], toml[k]) for k in ini.keys() & toml.keys() if ini[k] != toml[k]]
    assert not toml.keys() - ini.keys(), "said in pyproject.toml only"


def test_tested_versions_lie_in_the_stated_ranges():
    from packaging.requirements import Requirement
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [Requirement(r) for r in project["dependencies"] + project["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert not [str(r) for r in asked if r.name not in pinned or pinned[r.name] not in r.specifier]


# ---------------------------------------------------------------- generated files

def test_export_leaves_no_difference(copy):
    # From nothing but the version: so a module without a notebook shows too.
    for path in (copy / "sadm").glob("*.py"):
        if path.name != "__init__.py": path.unlink()
    nbdev(copy, "nbdev-export")
    assert differing(files(ROOT / "sadm", ".py"), files(copy / "sadm", ".py")) == [], "run `make export`"


def test_clean_leaves_no_difference(copy):
    # nbdev-clean only warns about a notebook that it cannot read, hence the look at what it says.
    assert "Failed" not in nbdev(copy, "nbdev-clean")
    for folder in ("nbs", "reproduce"):
        assert differing(files(ROOT / folder, ".ipynb"), files(copy / folder, ".ipynb")) == [], "run `make export`"


def test_the_tables_of_data_readme_are_current():
    assert subprocess.run([sys.executable, ROOT / "tools/data_table.py", "--check"]).returncode == 0, "run `make export`"


def test_the_generated_pages_of_the_site_are_current():
    done = subprocess.run([sys.executable, ROOT / "tools/site_pages.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_readme_is_current():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools/readme.py")
    readme = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(readme)
    text = (ROOT / readme.TARGET).read_text(encoding="utf-8")
    assert text == readme.render(ROOT / readme.SOURCE), "run `make readme`"
    links = re.findall(r"""(?:\]\(|(?:src|href)=")([^)\s"#]+)""", "".join(readme.CODE.split(text)[::2]))
    assert not [t for t in links if not re.match(r"[a-z]+:", t) and not (ROOT / t).exists()], "links to nothing"


def test_every_page_can_be_made_for_the_website(copy):
    "nbdev's half of the website; Quarto's half needs Quarto."
    script = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)"
    # PYTHONPATH: the pages run the import cells, on the copy's package and not on an installed one
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"} | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], cwd=copy, env=env, text=True, capture_output=True)
    assert done.returncode == 0, "an import belongs in a cell of its own\n" + done.stdout + done.stderr
    missing = [str(n) for n in NOTEBOOKS if not (copy / "_proc" / n).exists()]
    assert not missing, done.stdout + done.stderr
    for n in NOTEBOOKS: json.loads((copy / "_proc" / n).read_text(encoding="utf-8"))


# ---------------------------------------------------------------- notebooks

def test_there_are_notebooks():
    assert any(n.parts[0] == "nbs" for n in NOTEBOOKS) and REPRODUCE


@named
def test_notebook_carries_outputs_and_no_errors(notebook):
    outputs = [o for c in cells(notebook) for o in c["outputs"]]
    assert outputs, "run it from top to bottom and save it with its outputs"
    assert not [o["ename"] for o in outputs if o["output_type"] == "error"]


@pytest.mark.parametrize("notebook", REPRODUCE, ids=lambda p: p.stem)
def test_one_parameters_cell_of_literals(notebook):
    found = [c for c in cells(notebook) if "parameters" in c["metadata"].get("tags", [])]
    assert len(found) == 1
    lines = ast.parse("".join(found[0]["source"])).body
    assert lines and all(isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name) for s in lines)
    for s in lines: ast.literal_eval(s.value)  # raises on anything but a plain value



@named
def test_every_figure_says_in_words_what_it_shows(notebook):
    "An alternative text: the Quarto option fig-alt of the cell that draws."
    drawn = [c for c in cells(notebook) if any("image/png" in o.get("data", {}) or "image/svg+xml" in o.get("data", {}) for o in c["outputs"])]
    said = {c["id"]: re.match(r'#\| fig-alt: "(.*)"$', "".join(c["source"]).split("\n")[0]) for c in drawn}
    assert not [cell for cell, text in said.items() if text is None], 'the first line of a cell that draws is #| fig-alt: "..."'
    assert all(40 <= len(text[1]) <= 400 for text in said.values()), "a sentence or three"


# Ordered, diverging about a middle, or grey: colour maps that deficient colour vision tells apart.
MAPS = {"gray", "Greys", "cividis", "viridis", "vlag", "RdBu", "RdBu_r", "PuOr", "PuOr_r"}


@named
def test_colour_maps_are_safe_for_colour_blind_readers(notebook):
    used = set(re.findall(r"""(?:cmap\s*=\s*|color_palette\(\s*|get_cmap\(\s*)["'](\w+)["']""", "\n".join("".join(c["source"]) for c in cells(notebook))))
    assert not used - MAPS - {"colorblind"}


# ---------------------------------------------------------------- all files

# Folders of one machine, and the files a Jupyter kernel names in warnings (new at each run).
OWN = re.compile(rb"(?<![\w.~}])/(?:(?:root|work|Users/[\w.-]+|home/[\w.-]+)/|tmp/ipykernel_)|[A-Z]:\\+Users\\")


def test_no_file_names_a_folder_of_some_machine():
    wrong = [(str(p.relative_to(ROOT)), m[0].decode()) for p in committed() for m in OWN.finditer(p.read_bytes())]
    assert wrong == []


def test_the_site_shows_every_notebook():
    "Both lists in _quarto.yml are globs, so a new notebook needs no entry."
    import yaml
    quarto = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    render, sidebar = quarto["project"]["render"], [s["contents"] for s in quarto["website"]["sidebar"]["contents"]]
    sidebar = [p for contents in sidebar for p in ([contents] if isinstance(contents, str) else contents)]
    for patterns in (render, sidebar):
        assert not [n for n in NOTEBOOKS if not any(fnmatch.fnmatch(n.as_posix(), p) for p in patterns)]
