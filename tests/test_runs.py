"""What cannot be a notebook cell: killed processes, several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sadm.adaptation import adapt, draw_adapted
from sadm.data import load_data
from sadm.experiments import code_checksum, complete, held, results_frame, run, run_folder, run_many, samples_path, stages
from sadm.loop import load_checkpoint

TINY = dict(network_kwargs=dict(model_channels=16, channel_mult=[1, 2], attn_resolutions=[8], patch_size=2), batch_size=16, warmup=50, encoder_steps=5,
            n_samples=16, n_reference=100, sampler_steps=3, independent_encoder="small_cnn")


def in_process(call, settings, runs):
    "`call`, an expression of `settings` and `runs`, in a process of its own."
    code = f"from sadm.experiments import run, run_many; settings, runs = {settings!r}, {str(runs)!r}; {call}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, env=os.environ | {"TQDM_DISABLE": "1"})


def tensors(value):
    "All tensors in nested containers, in order."
    if isinstance(value, torch.Tensor): yield value
    elif isinstance(value, dict):
        for key in sorted(value, key=str): yield from tensors(value[key])
    elif isinstance(value, (list, tuple)):
        for item in value: yield from tensors(item)


def test_killed_at_a_random_step_and_called_again_gives_the_same_bits(tmp_path):
    "SIGKILL in the adversarial phase, whose state is the largest: both networks, the average, both optimizers."
    settings = complete({**TINY, "phases": [["sg", 20], ["sat", 180]], "checkpoint_every": 100})
    folder = lambda runs: run_folder(settings, load_data("fashion16"), runs)
    run(settings, tmp_path / "whole")
    target, killed = random.SystemRandom().randint(121, 160), tmp_path / "killed"  # after the phase's first checkpoint (step 100), well before its end
    process, log = in_process("run(settings, runs)", settings, killed), folder(killed) / "metrics.jsonl"
    wait_until = time.time() + 300
    while not (log.exists() and f'"step": {target // 20 * 20},' in log.read_text()):
        assert process.poll() is None, process.stderr.read()
        assert time.time() < wait_until, f"the run did not get to step {target}"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert load_checkpoint(folder(killed) / "last.pt")["step"] == 100, f"killed near step {target}"
    assert not list(folder(killed).glob("result-*.json"))
    (folder(killed) / "ema.writing").write_bytes(b"half a file")  # what a kill while the weights are written leaves behind
    run(settings, killed)
    first, second = (list(tensors(load_checkpoint(folder(runs) / "last.pt"))) for runs in (tmp_path / "whole", killed))
    assert len(first) == len(second) > 100 and all(torch.equal(a, b) for a, b in zip(first, second))
    first, second = (load_file(folder(runs) / "ema.safetensors") for runs in (tmp_path / "whole", killed))
    assert all(torch.equal(first[name], second[name]) for name in first)
    results = [json.loads(next(folder(runs).glob("result-*.json")).read_text()) for runs in (tmp_path / "whole", killed)]
    assert results[0]["fd_discriminator"] == results[1]["fd_discriminator"]


def test_a_second_process_on_the_same_run_says_who_has_it(tmp_path):
    settings = complete({**TINY, "phases": [["plain", 3]]})
    folder = run_folder(settings, load_data("fashion16"), tmp_path)
    lock = held(folder, wait=False)
    process = in_process("run(settings, runs)", settings, tmp_path)
    _, error = process.communicate(timeout=120)
    lock.release()
    assert process.returncode and "is in use by" in error and f'"pid": {os.getpid()}' in error


def test_a_table_waits_for_a_run_that_another_table_makes_and_says_so(tmp_path):
    "Tables share runs: side by side, one of them trains it and the other reads it."
    settings = complete({**TINY, "phases": [["plain", 3]]})
    folder = run_folder(settings, load_data("fashion16"), tmp_path)
    lock = held(folder, wait=False)
    process = in_process("run_many([settings], runs, workers=1)", settings, tmp_path)
    said = next(line for line in process.stderr if line.startswith("waiting for"))
    assert said.startswith(f"waiting for {folder}, in use by") and f'"pid": {os.getpid()}' in said and process.poll() is None
    lock.release()
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0 and list(folder.glob("result-*.json")), error


def test_two_workers_give_what_one_gives(tmp_path):
    experiments = [{**TINY, "seed": seed, "phases": phases} for seed in (0, 1) for phases in ([["plain", 3]], [["sg", 2], ["plain", 2]], [["sg", 2], ["sat", 2]])]
    one, two = run_many(experiments, tmp_path / "one", workers=1), run_many(experiments, tmp_path / "two", workers=2)
    assert [r["fd_discriminator"] for r in one] == [r["fd_discriminator"] for r in two]
    assert [Path(r["folder"]).name for r in one] == [Path(r["folder"]).name for r in two]


def test_two_processes_draw_a_run_s_samples_that_one_would_have_drawn(tmp_path):
    "Two shards, one for each; with the training done before, nothing but the wait at the end keeps the first process from joining what the second is still drawing."
    settings = {**TINY, "phases": [["plain", 2]], "n_samples": 1010, "sampler_steps": 2}
    alone = run(settings, tmp_path / "runs")
    folder, path = Path(alone["folder"]), samples_path(complete(settings), Path(alone["folder"]))
    kept = np.load(path)["arr_0"]
    for file in (path, *folder.glob("result-*.json")): file.unlink()
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "sadm.experiments", "--settings", tmp_path / "settings.json", "--runs", tmp_path / "runs"],
                          capture_output=True, text=True, env=os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(path)["arr_0"], kept) and not path.with_suffix("").exists()
    # The pictures are equal; the encoder's float32 sums are not, with one thread there and more here: 1e-9 was seen, a few of float32's last digits are allowed.
    assert run(settings, tmp_path / "runs")["fd_independent"] == pytest.approx(alone["fd_independent"], rel=1e-6)


def test_a_failing_worker_stops_everything_with_its_own_error(tmp_path):
    settings = complete({**TINY, "phases": [["plain", 3]]})
    folder = stages(settings, load_data("fashion16"), tmp_path)[0]
    folder.mkdir(parents=True)
    (folder / "last.pt").write_bytes(b"no checkpoint")
    with pytest.raises(RuntimeError, match="cannot be read"):
        run_many([settings, {**settings, "seed": 1}], tmp_path, workers=2)
    assert (folder / "last.pt").read_bytes() == b"no checkpoint", "nothing is deleted"


def test_a_run_on_latents_decodes_for_the_structural_term_and_for_its_samples(tmp_path, monkeypatch):
    "DiT on latents of a small autoencoder: guided and adversarial phases look at decoded images, samples and distances are of images."
    from diffusers import AutoencoderKL
    from sadm.data import DATASETS, ImageData, LatentData, content_checksum
    from sadm.experiments import samples_of, trained_denoiser
    from sadm.latents import load_vae, moments
    torch.manual_seed(0)
    AutoencoderKL(block_out_channels=(8,) * 4, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4, latent_channels=4).save_pretrained(tmp_path / "vae")
    vae = load_vae(tmp_path / "vae")
    def coloured(split):
        grey = load_data("fashion16", split)
        images, labels = grey.images[:64].expand(-1, 3, -1, -1).repeat(1, 1, 2, 2), grey.labels[:64]
        return ImageData(f"coloured-{split}", images, labels, content_checksum(images, labels))
    def latents(split):
        data = coloured(split)
        stored = moments(vae, data.images)[:, None].half()
        return LatentData(f"coloured_latents-{split}", stored, data.labels, content_checksum(stored, data.labels))
    monkeypatch.setitem(DATASETS, "coloured", coloured)
    monkeypatch.setitem(DATASETS, "coloured_latents", latents)
    settings = {**TINY, "data": "coloured_latents", "vae": str(tmp_path / "vae"), "process": "ddpm", "network": "dit", "conditional": True, "sampler": "ancestral", "sampler_steps": "3", "guidance": 1.5, "lr": 1e-2, "omega": 100.,
                "network_kwargs": dict(patch_size=2, hidden_size=32, depth=1, num_heads=2, num_classes=10), "batch_size": 8, "warmup": 0, "ema_halflife": 8, "n_samples": 8, "n_reference": 32}
    guided, plain = run({**settings, "phases": [["sg", 3], ["sat", 3]], "subset": 4}, tmp_path / "runs"), run({**settings, "phases": [["plain", 3], ["plain", 3]]}, tmp_path / "runs")
    assert samples_of(guided).shape == (8, 3, 32, 32) and guided["reference"] == "coloured-test" and guided["fd_discriminator"] > 0
    weights = [trained_denoiser(r["settings"], tmp_path / "runs").net.state_dict() for r in (guided, plain)]
    assert any(not torch.allclose(a, b, rtol=1e-3) for a, b in zip(*map(dict.values, weights))), "the structural term moved nothing"

    adapted = adapt({"start": "random", "target": "coloured_latents", "vae": str(tmp_path / "vae"), "network_kwargs": dict(patch_size=2, hidden_size=32, depth=1, num_heads=2), "phases": [["sg", 2], ["sat", 1]], "encoder_steps": 3, "classifier_steps": 3,
                     "batch_size": 8, "accumulate": 2, "warmup": 0, "n_samples": 10, "n_reference": 32, "sampler": "ancestral", "sampler_steps": "3", "guidance": 1.5, "independent_encoder": "small_cnn"}, tmp_path / "runs")
    images, nfe = draw_adapted(adapted["settings"], tmp_path / "runs")
    assert images.shape == (10, 3, 32, 32) and nfe == 3 and adapted["fd_classifier"] > 0


def test_code_that_continues_a_run_is_recorded(tmp_path):
    settings = complete({**TINY, "phases": [["plain", 3]]})
    folder = run_folder(settings, load_data("fashion16"), tmp_path)
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text(json.dumps([{"commit": "abc", "code": "0123abcd4567"}]))
    result = run(settings, tmp_path)
    line, = results_frame([result], ["ddpm"], "smoke").to_dict("records")
    assert line["code"].split(" ") == sorted(["0123abcd4567", code_checksum()]) and "abc" in line["commit"]
