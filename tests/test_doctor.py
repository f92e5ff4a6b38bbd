"""`sadm doctor` on machines that have things and on machines that lack them."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from sadm.checkpoints import write_json
from sadm.data import PREPARATION
from sadm.doctor import examine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    "Folders of data, weights and Hugging Face's cache that hold nothing yet."
    for name, folder in (("SADM_DATA", "data"), ("TORCH_HOME", "torch"), ("HF_HUB_CACHE", "hub")): monkeypatch.setenv(name, str(tmp_path / folder))
    return tmp_path


def by_name(rows, name): return next(row for row in rows if row["name"] == name)


def test_what_is_put_in_place_is_found_and_no_longer_asked_for(machine):
    before = examine(machine / "runs")
    assert not by_name(before["data"], "cifar10")["ready"] and not by_name(before["weights"], "inception_v3")["there"]
    table5 = lambda report: next(row for row in report["tables"] if (row["table"], row["column"]) == ("table5", "cifar10"))
    assert table5(before)["needs"]["data"] == ["cifar10"] and "inception_v3" in table5(before)["needs"]["weights"]

    folder = machine / "data" / "prepared" / "cifar10-train"
    folder.mkdir(parents=True)
    np.save(folder / "images.npy", np.zeros((4, 3, 32, 32), np.uint8))
    np.save(folder / "labels.npy", np.zeros(4, np.int32))
    write_json(folder / "manifest.json", dict(count=4, preparation=PREPARATION, form="pixels", content="0"))
    file = machine / "torch" / "hub" / "checkpoints" / "inception_v3_google-0cc3c7bd.pth"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    after = examine(machine / "runs")
    assert by_name(after["data"], "cifar10") == dict(name="cifar10", ready=True, state="4 images", original=0, prepared=0)
    assert by_name(after["weights"], "inception_v3")["path"] == str(file)
    assert table5(after)["needs"]["data"] == [] and "inception_v3" not in table5(after)["needs"]["weights"]
    needed = lambda report: sum(disk["needed"] for disk in report["disks"])
    assert needed(before) - needed(after) == sum(by_name(before["data"], "cifar10")[part] for part in ("original", "prepared")) + by_name(before["weights"], "inception_v3")["bytes"]


def test_an_original_that_is_there_is_not_downloaded_again(machine):
    path = machine / "data" / "downloads" / "cifar10" / "cifar-10-python.tar.gz"
    path.parent.mkdir(parents=True)
    path.touch()
    line = by_name(examine(machine)["data"], "cifar10")
    assert line["original"] == 0 and line["prepared"] == 2 * 50_000 * 3 * 32**2


def test_a_half_prepared_and_an_unusable_set_are_told_apart(machine):
    (machine / "data" / "prepared" / "cifar10-train.partial").mkdir(parents=True)
    folder = machine / "data" / "prepared" / "food101-train"
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", dict(preparation=PREPARATION + 1))
    found = examine(machine)["data"]
    assert by_name(found, "cifar10")["state"].startswith("begun") and by_name(found, "food101")["state"].startswith("unusable")


WITHOUT = "import sys; sys.modules.update({%r: None}); import runpy; sys.argv = ['sadm doctor', *sys.argv[1:]]; runpy.run_module('sadm.doctor', run_name='__main__')"


@pytest.mark.parametrize("package, lost", [("torch", "device"), ("diffusers", "tables")])
def test_it_answers_where_a_package_is_missing(machine, package, lost):
    "And says which part of the examination could not be made."
    report = json.loads(subprocess.run([sys.executable, "-c", WITHOUT % package, "--json"], capture_output=True, text=True, check=True).stdout)
    assert package in report[lost]["error"] and by_name(report["packages"], "numpy")["ok"]
    text = subprocess.run([sys.executable, "-c", WITHOUT % package], capture_output=True, text=True, check=True).stdout
    assert "could not look: ModuleNotFoundError" in text and "numpy" in text


def test_the_command(machine):
    env = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", "import sys; from sadm.cli import main; sys.exit(main(['doctor']))"], capture_output=True, text=True, env=env)
    assert done.returncode == 0 and "no CUDA device" in done.stdout and "table7" in done.stdout and "needed" in done.stdout, done.stderr
