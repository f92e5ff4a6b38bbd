"""Every notebook in nbs/ runs, each in a process of its own; as many at a time as there are cores, one where pytest itself runs files side by side."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))


def run(notebook):
    "nbdev-test on one notebook (it honours `#| eval: false` and tst_flags): passed?, what it said, seconds."
    # One thread each: with two at a time on two cores more threads only get in each other's way.
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    start = time.perf_counter()
    done = subprocess.run([Path(sys.executable).parent / "nbdev-test", str(notebook)],
                          cwd=ROOT, env=env, text=True, capture_output=True)
    said = done.stdout + done.stderr
    # nbdev-test also exits with 0 when it finds nothing to run.
    return done.returncode == 0 and "Success." in done.stdout, said, time.perf_counter() - start


@pytest.fixture(scope="module")
def results(request):
    "A future for each notebook among the selected tests; they all start at once, so the pool is always full."
    chosen = {i.callspec.params["notebook"] for i in request.session.items
              if i.path == Path(__file__) and hasattr(i, "callspec")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pool = ThreadPoolExecutor(max(1, cores // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1))))
    yield {n: pool.submit(run, n) for n in sorted(chosen)}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(notebook, results, record_property):
    passed, said, seconds = results[notebook].result()
    record_property("seconds", round(seconds, 1))  # shown by conftest.py: pytest's own times hold the waiting
    if not passed: pytest.fail(said, pytrace=False)


def test_a_failing_notebook_is_noticed(tmp_path):
    "The runner itself can fail: on an error, and on nothing to run."
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "x"\n[tool.nbdev]\nnbs_path = "."\n')
    for name, source in {"good": "1 + 1", "bad": "assert 1 + 1 == 3, 'wrong sum'"}.items():
        nb = new_notebook(cells=[new_code_cell(source)])
        nb.metadata["kernelspec"] = {"name": "python3", "display_name": "python3", "language": "python"}
        nbformat.write(nb, tmp_path / f"{name}.ipynb")
    passed, said, _ = run(tmp_path / "good.ipynb")
    assert passed, said
    passed, said, _ = run(tmp_path / "bad.ipynb")
    assert not passed and "wrong sum" in said and "bad.ipynb" in said
    (tmp_path / ".notest").touch()
    assert not run(tmp_path / "good.ipynb")[0]
