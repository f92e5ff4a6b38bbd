"""The how-to files run as they stand, with tiny settings; and what they say of themselves is true."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sadm.checkpoints import write_json
from sadm.data import PREPARATION

HOWTO = Path(__file__).resolve().parent.parent / "howto"
LOOPS = ["edm_loop", "dit_loop", "diffusers_loop"]
TINY = {"edm_loop": ["--channels", "16", "--samples", "4"], "diffusers_loop": ["--channels", "16", "--warmup", "0", "--cpu"], "dit_loop": ["--size", "S/2", "--depth", "1", "--decode", "4"]}


@pytest.fixture(scope="module")
def latents(tmp_path_factory):
    "A data folder with eight latents, and an autoencoder of random weights."
    from diffusers import AutoencoderKL
    folder = tmp_path_factory.mktemp("latents")
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4, sample_size=8).save_pretrained(folder / "vae")
    prepared = folder / "prepared" / "food101_latents-train"
    prepared.mkdir(parents=True)
    rng = np.random.default_rng(0)
    np.save(prepared / "images.npy", np.abs(rng.normal(size=(8, 2, 8, 8, 8))).astype(np.float16))
    np.save(prepared / "labels.npy", np.arange(8, dtype=np.int32) % 3)
    write_json(prepared / "manifest.json", dict(count=8, preparation=PREPARATION, form="latents", content="0", scale=0.18215))
    return folder


def source(name, without=()):
    "The file, without the lines that carry these marks."
    lines = (HOWTO / f"{name}.py").read_text().splitlines()
    return "\n".join(line for line in lines if not any(re.search(rf"# {mark}\b", line) for mark in without))


def run(name, text, folder, latents, steps=2):
    "The script in a process of its own: what it says at the end."
    (folder / f"{name}.py").write_text(text)
    more = ["--data", "food101_latents", "--vae", str(latents / "vae")] if name == "dit_loop" else []
    command = [sys.executable, folder / f"{name}.py", "--steps", str(steps), "--batch-size", "8", "--encoder-size", "32", "--out", folder / "out", *TINY[name], *more]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=os.environ | {"SADM_DATA": str(latents), "TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_runs_and_without_its_marked_lines_too(name, tmp_path, latents):
    "The first step's denoising loss does not know of the structural lines, the second does: they have moved the weights."
    said = {}
    for marks in ((), ("SAT",), ("SAT", "SADM")):
        folder = tmp_path / "-".join(("without", *marks))
        folder.mkdir()
        said[marks] = run(name, source(name, marks), folder, latents)
        assert np.isfinite([said[marks]["first"], said[marks]["last"]]).all()
        assert list((folder / "out").rglob("*.safetensors")), "no weights were written"
    firsts, lasts = ({line[key] for line in said.values()} for key in ("first", "last"))
    assert len(firsts) == 1, "the marked lines change what is drawn"
    assert name == "dit_loop" or len(lasts) >= 2  # a new DiT answers 0, and its first step moves only the last layer


def test_dit_s_loop_can_be_tried_on_images(tmp_path):
    "The small form that its first lines name, smaller still: pixels, no autoencoder."
    command = [sys.executable, HOWTO / "dit_loop.py", *"--data fashion16 --size S/2 --depth 1 --batch-size 8 --encoder-size 32 --steps 3".split(), "--vae", "nowhere", "--out", tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert np.isfinite([said["first"], said["last"]]).all() and (tmp_path / "ema.safetensors").is_file()


@pytest.mark.parametrize("name", LOOPS)
def test_it_is_three_lines(name):
    marked = [line for line in (HOWTO / f"{name}.py").read_text().splitlines() if re.search(r"# SADM \d", line)]
    assert [re.search(r"# SADM (\d)", line)[1] for line in marked] == ["1", "2", "3"]
    assert "StructuralLoss" in marked[0] and "StructuralLoss(" in marked[1] and "structure(" in marked[2]
    ast.parse(source(name, ("SAT", "SADM")))


def test_the_samples_of_the_edm_loop_can_be_evaluated(tmp_path, latents):
    run("edm_loop", source("edm_loop"), tmp_path, latents, steps=1)
    images = np.load(tmp_path / "out" / "samples.npz")["arr_0"]
    assert images.shape == (4, 16, 16, 1) and images.dtype == np.uint8


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_the_predicted_clean_image_of_each_prediction_type(kind):
    "A network that answers the truth predicts the clean image, at the noise level that made it."
    from diffusers import DDPMScheduler
    sys.path.insert(0, str(HOWTO))
    try: from diffusers_loop import predicted_clean
    finally: sys.path.remove(str(HOWTO))
    scheduler, g = DDPMScheduler(1000, prediction_type=kind), torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(3, 1, 4, 4, generator=g) for _ in range(2))
    t = torch.tensor([0, 300, 800])
    answer = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, t)}[kind]
    x0_hat, level = predicted_clean(scheduler, answer, scheduler.add_noise(clean, noise, t), t)
    torch.testing.assert_close(x0_hat, clean, rtol=1e-3, atol=1e-4)  # at t = 800 the noise is 20 times the image
    expected = ((1 - scheduler.alphas_cumprod[t]) / scheduler.alphas_cumprod[t]).sqrt()
    torch.testing.assert_close(level, expected)


# ---------------------------------------------------------------- pages

PAGES = sorted(HOWTO.glob("*.md"))


@pytest.mark.parametrize("page", [p for p in PAGES if "```python" in p.read_text()], ids=lambda p: p.stem)
def test_the_blocks_of_a_page_run(page, tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.S | re.M)
    script = "if __name__ == '__main__':\n" + "\n".join(f"    {line}" for line in "\n".join(blocks).splitlines())
    (tmp_path / "page.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "page.py"], capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1"})
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_of_a_page_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    assert links and not [link for link in links if not re.match("[a-z]+:", link) and not (page.parent / link).exists()]


def test_the_index_of_the_how_tos_is_complete():
    text = (HOWTO / "README.md").read_text()
    assert not [p.name for p in HOWTO.iterdir() if p.is_file() and p.name != "README.md" and f"({p.name})" not in text]


# ---------------------------------------------------------------- Slurm

SRUN = """#!/bin/bash
shift
exec env SLURM_NODEID=0 "$@"
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo node0; echo node1; else echo "$@" >> "$SAID/requeued"; fi
"""
LAUNCH = """#!/bin/bash
printf '%s\\n' "$@" > "$SAID/launch"
trap 'echo saved > "$SAID/saved"; exit 143' TERM
if [ "${JOB:-}" = long ]; then touch "$SAID/started"; while true; do sleep 0.05; done; fi
"""


@pytest.fixture
def slurm(tmp_path):
    "A Slurm that only does as it is told: the environment to call the script in."
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("accelerate", LAUNCH)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    return os.environ | dict(PATH=f"{tmp_path}:{os.environ['PATH']}", SAID=str(tmp_path), SADM_LAUNCH=str(tmp_path / "accelerate"), SLURM_NNODES="2", SLURM_GPUS_ON_NODE="4", SLURM_JOB_ID="77", SLURM_JOB_NODELIST="node[0-1]")


def test_a_slurm_job_launches_what_it_was_given(slurm, tmp_path):
    done = subprocess.run(["bash", HOWTO / "slurm.sh", "-m", "sadm.experiments", "--rows", "a b"], env=slurm, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "launch").read_text().splitlines()
    assert said[:11] == ["launch", "--num_machines", "2", "--num_processes", "8", "--machine_rank", "0", "--main_process_ip", "node0", "--main_process_port", "20077"]
    assert said[-4:] == ["-m", "sadm.experiments", "--rows", "a b"] and "--multi_gpu" in said
    assert not (tmp_path / "requeued").exists(), "a job that ends by itself is not queued again"


def test_a_preempted_slurm_job_saves_and_is_queued_again(slurm, tmp_path):
    job = subprocess.Popen(["bash", HOWTO / "slurm.sh", "train.py"], env=slurm | {"JOB": "long"})
    deadline = time.time() + 60
    while not (tmp_path / "started").exists() and time.time() < deadline: time.sleep(0.05)
    job.terminate()
    assert job.wait(60) == 143
    assert (tmp_path / "saved").exists() and (tmp_path / "requeued").read_text() == "requeue 77\n"


def test_a_slurm_job_without_a_command_is_refused(slurm):
    done = subprocess.run(["bash", HOWTO / "slurm.sh"], env=slurm, capture_output=True, text=True)
    assert done.returncode == 2 and "usage" in done.stderr
