"""Memory and time of the structural term with Stable Diffusion's decoder in the loop, at 256 px on this CPU: writes data/results/decoder.csv.

Each line runs in a process of its own (random weights, no download), is told beforehand how much it will take, and is skipped beyond LIMIT_GB.
Run it on a calm machine: OMP_NUM_THREADS=1 python tools/decoder_cost.py"""

import json
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

LIMIT_GB = 12
CASES = [dict(batch=batch, checkpoint=checkpoint, chunk=1 if checkpoint else batch, size=size)
         for batch in (4, 8, 16) for checkpoint, size in ((False, None), (True, None), (True, 16))]


def case(batch, checkpoint, chunk, size):
    "One line: seconds and peak memory of the term and its gradient."
    import torch
    from diffusers import AutoencoderKL
    from sadm.discriminator import StructuralLoss
    from sadm.encoders import inception_v3
    from sadm.latent_structure import Decoded, LatentDecoder
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
                        layers_per_block=2, sample_size=256)
    structure = StructuralLoss(Decoded(LatentDecoder(vae), inception_v3(pretrained=False).requires_grad_(False), size, chunk, checkpoint))
    del vae
    z0 = torch.randn(batch, 4, 32, 32)
    z0_hat = (z0 + 0.1 * torch.randn_like(z0)).requires_grad_()
    resident = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9
    before, begun = resident(), time.perf_counter()
    structure(z0, z0_hat, 0.5).backward()
    assert z0_hat.grad.abs().max() > 0
    return dict(before_gb=round(before, 2), peak_gb=round(resident(), 2), seconds=round(time.perf_counter() - begun, 1))


def expected(batch, checkpoint, chunk, size):
    "GB, from what autograd keeps (meta device): the decoder's for a chunk or all, Inception's for all, and 1.5 for weights and libraries."
    import torch
    from diffusers import AutoencoderKL
    from sadm.encoders import inception_v3
    from sadm.latent_structure import LatentDecoder, saved_bytes
    with torch.device("meta"):
        decoder = LatentDecoder(AutoencoderKL(block_out_channels=(128, 256, 512, 512), down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, layers_per_block=2))
        decoded = saved_bytes(decoder, torch.zeros(1, 4, size or 32, size or 32, requires_grad=True))
        seen = saved_bytes(inception_v3(pretrained=False).requires_grad_(False), torch.zeros(1, 3, 299, 299, requires_grad=True))
    return 1.5 + (decoded * (chunk if checkpoint else batch) + seen * batch) / 1e9


def main():
    import pandas as pd
    import torch
    from sadm.data import root
    from sadm.experiments import current_commit, write_csv
    processor = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else platform.processor()
    made = dict(machine=processor or platform.machine(), torch=torch.__version__, threads=torch.get_num_threads(), commit=current_commit())
    lines = []
    for settings in CASES:
        gb = expected(**settings)
        if gb <= LIMIT_GB:
            done = subprocess.run([sys.executable, __file__, json.dumps(settings)], capture_output=True, text=True, check=True)
            numbers = dict(status="measured", **json.loads(done.stdout.splitlines()[-1]))
        else: numbers = dict(status="estimated", peak_gb=round(gb, 1))
        lines.append({**settings, "expected_gb": round(gb, 1), **numbers, **made})
        print(lines[-1], flush=True)
    write_csv(pd.DataFrame(lines)[["batch", "checkpoint", "chunk", "size", "status", "peak_gb", "before_gb", "expected_gb", "seconds", *made]], root() / "data" / "results" / "decoder.csv")


if __name__ == "__main__":
    if len(sys.argv) > 1: print(json.dumps(case(**json.loads(sys.argv[1]))))
    else: main()
