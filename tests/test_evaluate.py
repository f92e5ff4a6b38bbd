"Evaluation end to end through Inception's network: files in guided-diffusion's layout, memory, time, two processes on one reference."

import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sadm.evaluate import evaluate_samples, gather, main, reference_stats
from sadm.features import Extractor, extractor, untrained_inception
from sadm.images import ImageStream
from sadm.metrics import FeatureStats, frechet_distance


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return untrained_inception(tmp_path_factory.mktemp("weights") / "weights.pth")


def pictures(n, seed, side=32):
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def nhwc(images): return images.permute(0, 2, 3, 1).numpy()


def test_guided_diffusions_files(tmp_path, weights):
    "Moments given in a reference file count as those of the images that they were made of; its own sample batches are read as they are."
    inception, cache = extractor("inception", weights, any_weights=True), tmp_path / "cache"
    np.savez(tmp_path / "plain.npz", arr_0=nhwc(pictures(24, 0)))
    made = reference_stats(tmp_path / "plain.npz", inception, cache=cache)
    np.savez(tmp_path / "adm.npz", arr_0=nhwc(pictures(24, 0)), mu=made.stats.mean, sigma=made.stats.cov, mu_s=made.spatial.mean, sigma_s=made.spatial.cov)
    np.savez(tmp_path / "edm.npz", mu=made.stats.mean, sigma=made.stats.cov)
    np.savez(tmp_path / "samples.npz", arr_0=nhwc(pictures(20, 1)), arr_1=np.arange(20) % 10)
    plain, adm, edm = (evaluate_samples(tmp_path / "samples.npz", tmp_path / f"{name}.npz", [inception], cache=cache) for name in ("plain", "adm", "edm"))
    for name in ("frechet", "spatial_frechet", "inception_score", "precision", "recall", "precision_adm", "recall_adm", "kid"):
        np.testing.assert_allclose(plain["results"][0][name], adm["results"][0][name], rtol=1e-6)
    np.testing.assert_allclose(edm["results"][0]["frechet"], plain["results"][0]["frechet"], rtol=1e-6)
    assert "precision" not in edm["results"][0] and "spatial_frechet" not in edm["results"][0]
    intervals = evaluate_samples(tmp_path / "samples.npz", tmp_path / "adm.npz", [inception], halves=3, cache=cache)["results"][0]
    for name in ("frechet", "spatial_frechet", "inception_score", "precision", "recall", "kid"):
        assert intervals[f"{name}_low"] <= intervals[name] <= intervals[f"{name}_high"] and intervals[f"{name}_low"] < intervals[f"{name}_high"], name
    assert (intervals["kid_subsets"], intervals["kid_subset_size"]) == (1, 20)
    line = adm["results"][0]
    assert line["name"] == "Frechet distance" and not line["published"] and len(line["weights_sha256"]) == 64
    assert line["reference_images"] == 24 and "given in the file" in line["reference_moments"] and adm["samples"]["labels"] == "10 classes, balanced (2 each)"
    assert any("fewer" in w or "singular" in w for w in line["warnings"])
    # moments of Inception say nothing about another network's features
    lite = extractor("efficientnet_lite0_64")
    assert main([str(tmp_path / "samples.npz"), "--reference", str(tmp_path / "edm.npz"), "--extractors", "efficientnet_lite0_64", "--cache", str(cache)]) == 1
    assert "of its 24 images" == evaluate_samples(tmp_path / "samples.npz", tmp_path / "adm.npz", [lite], cache=cache)["results"][0]["reference_moments"]


def test_a_wrong_weights_file_is_no_fid(tmp_path, weights, capsys):
    np.savez(tmp_path / "samples.npz", arr_0=nhwc(pictures(12, 1)))
    assert main([str(tmp_path / "samples.npz"), "--reference", "digits8", "--extractors", "inception", "--weights", str(weights), "--cache", str(tmp_path)]) == 1
    assert "6726825d" in capsys.readouterr().err


# KiB, of the program alone: Linux hands ru_maxrss on from the process that starts another
PEAK = """
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")) if sys.platform == "linux" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
"""
STREAM = """
import resource, sys, torch
from sadm.evaluate import gather
from sadm.features import Extractor
from sadm.images import ImageStream
class Made:  # images that are made when they are asked for
    def __init__(self, n): self.n = n
    def __len__(self): return self.n
    def __getitem__(self, part): return torch.randint(256, (len(range(*part.indices(self.n))), 3, 32, 32), generator=torch.Generator().manual_seed(part.start), dtype=torch.uint8)
net = Extractor(lambda x: dict(features=x.reshape(len(x), -1)[:, :64], logits=x.reshape(len(x), -1)[:, :1008] / 255), extractor="made", weights_sha256="", resize="none", published=False)
torch.set_num_threads(1)
found = gather(net, ImageStream(Made(int(sys.argv[1]))), keep=0)
""" + PEAK + "print(found.stats.n, peak)"


def test_memory_does_not_grow_with_the_number_of_images():
    counts, peaks = zip(*(map(int, subprocess.run([sys.executable, "-c", STREAM, str(n)], capture_output=True, text=True, check=True).stdout.split()) for n in (10_000, 50_000)))
    assert counts == (10_000, 50_000)
    assert peaks[1] - peaks[0] < 60_000, peaks  # KiB; 40,000 images more are 120 MB, their logits 160 MB; the rest is the allocator's


def test_all_but_the_extractor_is_little(tmp_path):
    "Reading, checking and moments of 10,000 32x32 images beside the time that Inception takes for them, measured on 64."
    inception = extractor("inception", untrained_inception(tmp_path / "w.pth"), any_weights=True)
    few = gather(inception, ImageStream(pictures(64, 0)), batch_size=32)
    per_image = few.seconds["extractor"] / 64
    features = {name: torch.rand(10_000, width) for name, width in (("features", 2048), ("logits", 1008), ("spatial", 2023))}
    at = iter(range(0, 10_000, 250))
    def ready(x):
        start = next(at)
        return {name: value[start:start + 250] for name, value in features.items()}
    np.savez(tmp_path / "samples.npz", arr_0=nhwc(pictures(10_000, 0)))
    found = gather(Extractor(ready, extractor="inception", weights_sha256="", resize="", published=False), ImageStream(tmp_path / "samples.npz"))
    share = found.seconds["rest"] / (per_image * 10_000)
    print(f"extractor {per_image * 10_000:.0f} s for 10,000 images, the rest {found.seconds['rest']:.1f} s: {100 * share:.1f} %")
    assert share < 0.05


def test_the_distance_of_wide_statistics_is_fast():
    "2048 features; the limit of 2 s holds on two quiet cores, here it is a ratio in one run."
    from torch_fidelity.metric_fid import fid_statistics_to_metric
    a, b = (FeatureStats(2048).add(np.random.default_rng(seed).normal(size=(2500, 2048))) for seed in (0, 1))
    start = time.perf_counter()
    ours = frechet_distance(a, b)
    middle = time.perf_counter()
    theirs = fid_statistics_to_metric(*(dict(mu=s.mean, sigma=s.cov) for s in (a, b)), False)["frechet_inception_distance"]
    seconds = middle - start, time.perf_counter() - middle
    print("seconds, ours and torch-fidelity's:", seconds)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)  # two algorithms on 2048 eigenvalues
    assert seconds[0] < seconds[1]


PAIR = """
import sys
from pathlib import Path
from sadm.evaluate import reference_stats
from sadm.features import extractor
made = reference_stats("digits8", extractor("efficientnet_lite0_64"), split="test", cache=Path(sys.argv[1]))
print(made.stats.n, made.stats.mean.sum())
"""


def test_two_processes_share_a_reference(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", PAIR, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0][0] == said[1][0] and said[0][0].startswith("597 ") and len(list(tmp_path.glob("*.npz"))) == 1


PAIRWISE = """
import resource, sys, torch
from sadm.metrics import precision_recall
torch.set_num_threads(1)
draw = lambda seed: torch.rand(10_000, 2048, generator=torch.Generator().manual_seed(seed))
real, fake = draw(0), draw(1)
scores = precision_recall(real, fake, compat=%s)
""" + PEAK + "print(*scores, peak)"


@pytest.mark.parametrize("compat", [False, True])
def test_precision_and_recall_of_10000_wide_features_in_2_gb(compat):
    said = subprocess.run([sys.executable, "-c", PAIRWISE % compat], capture_output=True, text=True, check=True).stdout.split()
    assert 0 < float(said[0]) < 1 and int(said[2]) < 2 * 2**20, said  # KiB, the interpreter, torch and the features themselves included
