# `make quick` and `make test` need only Python 3.11 or newer, make and git. Everything is
# installed into $(VENV); an activated environment is neither needed nor touched.
VENV ?= .venv
export VENV
BIN := $(VENV)/bin

.PHONY: help venv quick smoke test doctor lab docs readme export wheel clean

help:  ## what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' Makefile

venv:  ## make .venv and install the kit into it (PYTHON=... picks another interpreter)
	@tools/install.sh dev

quick: venv  ## Table 5 on embedded data, minutes on two cores
	$(BIN)/sadm table5 --scale quick

smoke: venv  ## Table 5, structure only, seconds
	$(BIN)/sadm table5 --scale smoke

test: venv  ## all that CI checks, two files at a time, one thread each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

doctor: venv  ## what this machine has, and what each table lacks at full scale
	$(BIN)/sadm doctor

lab:  ## JupyterLab on the notebooks, with the kernel of .venv
	@tools/install.sh lab
	JUPYTER_PREFER_ENV_PATH=1 $(BIN)/jupyter lab

export: venv  ## after editing a notebook: write sadm/, clean the notebooks, write README.md
	$(BIN)/nbdev-export
	$(BIN)/nbdev-clean
	$(BIN)/python tools/readme.py
	$(BIN)/python tools/data_table.py
	$(BIN)/python tools/site_pages.py

readme: venv  ## write README.md from nbs/index.ipynb (Quarto not needed)
	$(BIN)/python tools/readme.py

# nbdev-docs would try to install a missing Quarto with sudo. It copies every folder it is
# not told to skip.
docs: venv  ## render the website to _docs/ (needs Quarto)
	@command -v quarto >/dev/null || { echo "make docs needs Quarto: https://quarto.org/docs/get-started/" >&2; exit 1; }
	PATH="$(abspath $(BIN)):$$PATH" nbdev-docs --skip-folder-re '^[_.]|^(data|sadm|tests|tools|build|dist|.*\.egg-info)$$'
	$(BIN)/python tools/offline_site.py _docs

wheel: venv  ## the package as dist/sadm-*.whl
	$(BIN)/python -m pip wheel --no-deps --wheel-dir dist .

clean:  ## remove what can be made again; .venv and _runs/ stay
	rm -rf _proc _docs build dist sadm.egg-info .pytest_cache nbdev.yml sidebar.yml
	find nbs reproduce sadm tests tools \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune -exec rm -rf {} +
