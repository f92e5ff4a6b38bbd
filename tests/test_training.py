"What training must survive: death at any moment, signals, a full disk, a second process; and that several processes take the step of one."

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from sadm.loop import load_checkpoint, read_log

QUIET = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}

# A small run of the whole method: python run.py FOLDER PHASES(json) [train's other arguments as json], in one process or several
RUN = """
import json, sys, time
import torch
from sadm.data import fashion16
from sadm.diffusion import EDM
from sadm.discriminator import StructuralLoss
from sadm.encoders import small_cnn
from sadm.training import train
from sadm.unet import UNet

torch.set_num_threads(1)
folder, phases, more = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3]) if len(sys.argv) > 3 else {}
if more.pop("double", False): torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
net, structure = UNet(16, 1, model_channels=16, channel_mult=(1, 2), attn_resolutions=(), patch_size=2), StructuralLoss(small_cnn(width=8), omega=100.)
settings = dict(batch_size=16, warmup=50, log_every=1, checkpoint_every=3, device="cpu") | more
train(folder, net, EDM(), fashion16("train"), phases, structure, **settings)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "run.py"
    path.write_text(RUN)
    return str(path)


def start(script, folder, phases, processes=1, **more):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)] if processes > 1 else [sys.executable]
    return subprocess.Popen([*command, script, str(folder), json.dumps(phases), json.dumps(more)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET)


def finish(process):
    _, error = process.communicate(timeout=300)
    return process.returncode, error


def done(script, folder, phases, processes=1, **more):
    status, error = finish(start(script, folder, phases, processes, **more))
    assert status == 0, error
    return folder


def step_of(folder):
    lines = read_log(folder / "metrics.jsonl")
    return lines[-1]["step"] if lines else 0


PHASES = [["sg", 30], ["sat", 30]]


def same_bits(a, b):
    first, second = (load_checkpoint(folder / "last.pt") for folder in (a, b))
    def compare(x, y):
        if isinstance(x, torch.Tensor): assert torch.equal(x, y)
        elif isinstance(x, dict):
            assert x.keys() == y.keys()
            for key in x: compare(x[key], y[key])
        elif isinstance(x, (list, tuple)):
            assert len(x) == len(y)
            for u, v in zip(x, y): compare(u, v)
        else: assert x == y
    compare(first, second)
    compare(load_file(a / "ema.safetensors"), load_file(b / "ema.safetensors"))


def test_killed_at_twenty_random_moments(script, tmp_path):
    "Checkpoints every second step: many a SIGKILL comes while one is being written. `ended` counts how often the writing was under way."
    whole, killed = done(script, tmp_path / "whole", PHASES), tmp_path / "killed"
    kills, writing, draw = 0, 0, random.SystemRandom()
    while kills < 20:
        process = start(script, killed, PHASES, checkpoint_every=2)
        began = step_of(killed)
        waits = time.time() + 120
        while step_of(killed) < min(began + 1, 58) and process.poll() is None and time.time() < waits: time.sleep(0.002)  # it has started
        if process.poll() is None:
            time.sleep(draw.uniform(0, 0.15))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            writing += (killed / "last.writing").exists()
        else: break  # it was faster than twenty kills
        if (killed / "last.pt").exists(): assert load_checkpoint(killed / "last.pt")["step"] <= 60  # whole at any moment
    print(f"{kills} kills, {writing} while a checkpoint was being written")
    assert kills >= 8
    done(script, killed, PHASES, checkpoint_every=2)
    same_bits(whole, killed)


def test_killed_in_the_middle_of_writing(script, tmp_path):
    "The old checkpoint is whole, and what the kill left behind is in nobody's way."
    folder = done(script, tmp_path / "run", [["sg", 6]])  # it will turn out longer
    before = (folder / "last.pt").read_bytes()
    (folder / "last.writing").write_bytes(before[:1000])
    (folder / "ema.writing").write_bytes(b"half")
    with open(folder / "metrics.jsonl", "a") as log: log.write('{"step": 7, "loss"')
    done(script, folder, [["sg", 12]])
    same_bits(done(script, tmp_path / "whole", [["sg", 12]]), folder)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_ends(script, tmp_path, signum):
    process = start(script, tmp_path / "run", [["sg", 400]], checkpoint_every=1000)
    while step_of(tmp_path / "run") < 5: time.sleep(0.05); assert process.poll() is None
    process.send_signal(signum)
    status, error = finish(process)
    assert status in (-signum, 1) and status != 0 and "its checkpoint is" in error, error
    assert 5 <= load_checkpoint(tmp_path / "run" / "last.pt")["step"] == step_of(tmp_path / "run") < 400


def test_two_processes_leave_together(script, tmp_path):
    "SIGTERM to both, as torchrun and Slurm send it: one checkpoint, from which one process goes on."
    process = start(script, tmp_path / "run", [["sg", 4000]], 2, checkpoint_every=100_000)
    while step_of(tmp_path / "run") < 5: time.sleep(0.05); assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    finish(process)
    step = load_checkpoint(tmp_path / "run" / "last.pt")["step"]
    assert 5 <= step < 4000
    done(script, tmp_path / "run", [["sg", step + 2]])


FULL_DISK = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"  # no file may be larger: what a full disk says, without filling one


def test_a_full_disk_leaves_the_last_checkpoint(script, tmp_path):
    folder = done(script, tmp_path / "run", [["sg", 3]])
    before = (folder / "last.pt").read_bytes()
    full = tmp_path / "full.py"
    full.write_text(FULL_DISK + RUN)
    status, error = finish(start(str(full), folder, [["sg", 9]]))
    assert status and "of step 3 is whole" in error and "Make room and call again" in error, error
    assert (folder / "last.pt").read_bytes() == before
    same_bits(done(script, folder, [["sg", 9]]), done(script, tmp_path / "whole", [["sg", 9]]))


def test_a_second_process_in_the_folder_says_who_has_it(script, tmp_path):
    process = start(script, tmp_path / "run", [["sg", 4000]])
    while step_of(tmp_path / "run") < 2: time.sleep(0.05); assert process.poll() is None
    status, error = finish(start(script, tmp_path / "run", [["sg", 4000]]))
    process.kill()
    assert status and "is in use by" in error and str(process.pid) in error


def test_settings_that_do_not_fit_the_checkpoint(script, tmp_path):
    folder = done(script, tmp_path / "run", [["plain", 3]])
    before = (folder / "last.pt").read_bytes()
    status, error = finish(start(script, folder, PHASES))  # an adversarial run has an encoder, which this checkpoint lacks
    assert status and "is of other settings: its 'encoder'" in error and (folder / "last.pt").read_bytes() == before


def close(a, b, rtol, atol):
    first, second = (load_checkpoint(folder / "last.pt") for folder in (a, b))
    for part in ("net", "ema", "encoder"):
        for name in first.get(part, {}): torch.testing.assert_close(first[part][name], second[part][name], rtol=rtol, atol=atol)
    for x, y in zip(read_log(a / "metrics.jsonl"), read_log(b / "metrics.jsonl")):
        for name in ("loss", "D", "gradient_norm"):
            if name in x: assert abs(x[name] - y[name]) <= atol + rtol * abs(x[name]), (x, y)


@pytest.mark.parametrize("phases", [[["plain", 20]], [["sg", 20]], [["sg", 8], ["sat", 12]]], ids=["plain", "sg", "sat"])
def test_two_processes_are_one(script, tmp_path, phases):
    "The same 20 steps of the same global batch with the affinity of all images: float64 to 1e-9, the learning rate so small that Adam's division does not blow up last bits."
    one, two = (done(script, tmp_path / str(n), phases, n, double=True, lr=1e-4, encoder_lr=1e-5, group_size=4, flip=True) for n in (1, 2))
    close(one, two, 1e-9, 1e-9)


def test_two_processes_are_one_in_float32(script, tmp_path):
    one, two = (done(script, tmp_path / str(n), [["sg", 8], ["sat", 12]], n, lr=1e-4, encoder_lr=1e-5) for n in (1, 2))
    for x, y in zip(read_log(one / "metrics.jsonl"), read_log(two / "metrics.jsonl")):
        for name in ("loss", "D"): assert abs(x[name] - y[name]) <= 1e-4 * max(abs(x[name]), 1e-3), (x, y)


def test_each_process_its_own_affinity_is_another_loss(script, tmp_path):
    one, two, own = (done(script, tmp_path / f"{n}{gather}", [["sg", 6]], n, double=True, gather=gather) for n, gather in ((1, True), (2, True), (2, False)))
    D = [[line["D"] for line in read_log(folder / "metrics.jsonl")] for folder in (one, two, own)]
    assert D[0][0] == pytest.approx(D[1][0], rel=1e-9) and abs(D[2][0] - D[0][0]) > 1e-4 * D[0][0]


def test_accumulation_in_two_processes(script, tmp_path):
    "2 processes x 2 passes of a quarter = 1 process on the whole, for the plain loss."
    one, four = (done(script, tmp_path / str(n), [["plain", 10]], n, double=True, accumulate=n, lr=1e-4) for n in (1, 2))
    close(one, four, 1e-9, 1e-9)


TINY = dict(network_kwargs=dict(model_channels=16, channel_mult=[1, 2], attn_resolutions=[8], patch_size=2), batch_size=16, warmup=50, encoder_steps=5,
            n_samples=16, n_reference=100, sampler_steps=3, independent_encoder="small_cnn")


def test_a_run_starts_its_own_processes(tmp_path):
    "`run` with processes=2 launches them, and measures what one process would have trained."
    from sadm.experiments import run
    settings = {**TINY, "phases": [["sg", 6], ["sat", 6]]}
    one, two = run(settings, tmp_path / "one"), run({**settings, "processes": 2}, tmp_path / "two")
    assert two["folder"].split("/")[-1] == one["folder"].split("/")[-1]  # how many processes is not what a run is
    assert abs(two["fd_independent"] / one["fd_independent"] - 1) < 0.01  # float32 in another order
    assert not list((tmp_path / "two").glob("launch-*.json"))


def test_the_command_trains_a_row(tmp_path):
    said = subprocess.run([sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "-m", "sadm.experiments",
                           "--table", "table5", "--row", "sat", "--scale", "smoke", "--runs", str(tmp_path)], capture_output=True, text=True, env=QUIET, timeout=300)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout[said.stdout.index("{"):])["nfe"] == 5


def test_trackers_get_what_the_log_gets(tmp_path):
    from accelerate.tracking import GeneralTracker
    from sadm.data import fashion16
    from sadm.diffusion import EDM
    from sadm.training import train
    from sadm.unet import UNet

    class Remembers(GeneralTracker):
        name, requires_logging_directory, main_process_only = "remembers", False, True
        def __init__(self): super().__init__(); self.lines = []
        @property
        def tracker(self): return self.lines
        def store_init_configuration(self, values): pass
        def log(self, values, step=None, **more): self.lines.append((step, values))

    tracker = Remembers()
    train(tmp_path, UNet(16, 1, model_channels=16, channel_mult=(1,), attn_resolutions=(), patch_size=2), EDM(), fashion16("train"), [["plain", 4]], batch_size=8, log_every=2, trackers=(tracker,), device="cpu")
    assert [step for step, _ in tracker.lines] == [2, 4] and tracker.lines[1][1]["loss"] == read_log(tmp_path / "metrics.jsonl")[1]["loss"]
