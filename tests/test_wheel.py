"""The wheel builds without a network, holds what it should and works where no repository is."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "Built from what git holds of the working tree, so that nothing that lies about can get in or be left in build/."
    pytest.importorskip("setuptools", "77")
    pytest.importorskip("wheel")
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, names):
        if (ROOT / name).is_file() and name.split("/")[0] in ("sadm", "data", "pyproject.toml", "README.md", "LICENSE"):
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    (folder / "source" / "data" / "prepared").mkdir()
    (folder / "source" / "data" / "prepared" / "images.npy").write_bytes(b"gigabytes of a user's")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", folder, folder / "source"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


def test_what_is_in_the_wheel(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    modules = {f"sadm/{path.name}" for path in (ROOT / "sadm").glob("*.py")}
    assert modules <= set(names)
    carried = {name.removeprefix("sadm/carried/") for name in names if name.startswith("sadm/carried/")}
    assert {"paper/results.csv", "paper/table6.csv", "results/table5.csv", "results/quick/table1.csv", "fashion16/fashion16.npz", "digits8/digits8.npz"} <= carried
    assert not [name for name in names if name.endswith(".ipynb") or "prepared" in name or name.startswith(("tests", "nbs", "reproduce"))]
    assert wheel.stat().st_size < 3_500_000, f"{wheel.stat().st_size:,} bytes"  # 2.3 MB of them the embedded images
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert all(f"Python :: 3.{minor}" in metadata for minor in (11, 12, 13)) and "Requires-Python: >=3.11" in metadata


BARE = """
import sys
from pathlib import Path
import pandas as pd
import sadm
from sadm.data import carried, data_folder, load_data, root
assert Path(sadm.__file__).is_relative_to(sys.argv[1]), sadm.__file__
assert root() == Path.cwd() and data_folder() == Path.cwd() / "data"
assert len(load_data("fashion16")) == 10_000 and len(load_data("digits8", "test")) == 597
assert {"ddpm", "sg", "sat"} <= set(pd.read_csv(carried("paper/results.csv"))["row"])
from sadm.experiments import run
result = run(dict(phases=[["sg", 1]], network_kwargs=dict(model_channels=16, channel_mult=[1, 2], patch_size=2), batch_size=8, encoder_steps=2, n_samples=8, n_reference=50, sampler_steps=2, independent_encoder="small_cnn"), Path("_runs"))
assert result["fd_independent"] > 0
"""


def test_the_wheel_works_alone(wheel, tmp_path):
    "Unpacked into a folder of its own, started in another, with the environment's libraries and without this repository."
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "work").mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("SADM_HOME", "SADM_DATA")} | dict(PYTHONPATH=str(tmp_path / "site"), TQDM_DISABLE="1")
    done = subprocess.run([sys.executable, "-c", BARE, str(tmp_path / "site")], cwd=tmp_path / "work", env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = subprocess.run([sys.executable, "-c", "from sadm.cli import main; main(['--help'])"], cwd=tmp_path / "work", env=env, capture_output=True, text=True)
    assert "clone it" in " ".join(said.stdout.split()) and "doctor" in said.stdout, said.stderr
    doctor = subprocess.run([sys.executable, "-m", "sadm.doctor"], cwd=tmp_path / "work", env=env, capture_output=True, text=True)
    assert doctor.returncode == 0 and "comes with the repository" in doctor.stdout, doctor.stderr
