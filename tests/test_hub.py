"""An exported pipeline gives its images in a process that knows nothing but the folder."""

import subprocess
import sys

import torch

from sadm.experiments import NETWORKS
from sadm.hub import export

OTHER = """
import sys, torch
from sadm.hub import load_pipeline
torch.save(load_pipeline(sys.argv[1]).sample(range(5), batch_size=5)[0], sys.argv[2])
"""


def test_another_process_draws_the_same_images(tmp_path):
    torch.manual_seed(0)
    kwargs = dict(model_channels=16, channel_mult=[1, 2], attn_resolutions=[8], patch_size=2)
    net = NETWORKS["unet"](16, 1, **kwargs)
    for p in net.parameters(): torch.nn.init.normal_(p, std=0.05)
    here, _ = export(tmp_path / "pipeline", net, "unet", 16, 1, kwargs, options=dict(n_steps=3)).sample(range(5), batch_size=5)
    subprocess.run([sys.executable, "-c", OTHER, tmp_path / "pipeline", tmp_path / "images.pt"], check=True)
    there = torch.load(tmp_path / "images.pt")
    torch.testing.assert_close(there, here, rtol=0, atol=1e-5)  # equal bits unless the other process got another number of threads
    assert here.std() > 0.01 and not list((tmp_path / "pipeline").rglob("*.bin"))
