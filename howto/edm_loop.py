"""EDM's training loop (Karras et al. 2022) with the structural loss.

    python howto/edm_loop.py --steps 400 --out _runs/howto-edm

Three lines, marked SADM, are structural guidance (Eq. 6). The lines marked SAT let the encoder learn adversarially as
well (Eq. 9 and 10); leave them out and the encoder stays frozen. Everything else is the loop as it was: a test removes
the marked lines and runs what remains.
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from sadm.data import batch_indices, load_data
from sadm.diffusion import EDM, Denoiser, to_float, to_uint8
from sadm.discriminator import StructuralLoss  # SADM 1
from sadm.encoders import efficientnet_lite0
from sadm.samplers import karras_sigmas, sample
from sadm.unet import UNet


class EDMPrecond(nn.Module):
    "Your preconditioned network: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Karras et al. 2022, Table 1."
    def __init__(self, model, sigma_data=0.5):
        super().__init__()
        self.model, self.sigma_data = model, sigma_data

    def forward(self, x, sigma):  # (B, C, H, W), (B,) -> (B, C, H, W) predicted clean images
        s = sigma.reshape(-1, 1, 1, 1)
        total = s**2 + self.sigma_data**2
        F_x = self.model(x / total.sqrt(), sigma.log() / 4)
        return self.sigma_data**2 / total * x + s * self.sigma_data / total.sqrt() * F_x


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", default="fashion16", help="of sadm.data.DATASETS; or put your own loader where x0 is made")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--channels", type=int, default=32, help="width of the network")
    options.add_argument("--lr", type=float, default=2e-3)
    options.add_argument("--encoder-size", type=int, default=64, help="images are resized to this side for the encoder")
    options.add_argument("--samples", type=int, default=16)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--out", type=Path, default=Path("_runs/howto-edm"))
    given = options.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)

    data = load_data(given.data)  # your data: images (B, C, H, W) in [-1, 1]
    C, side = data.shape[0], data.shape[-1]
    net = EDMPrecond(UNet(side, C, model_channels=given.channels, channel_mult=(1, 2))).to(given.device)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.Adam(net.parameters(), lr=given.lr)
    structure = StructuralLoss(efficientnet_lite0(size=given.encoder_size)).to(given.device)  # SADM 2
    encoder_optimizer = torch.optim.Adam(structure.encoder.parameters(), lr=given.lr / 100)  # SAT
    generator = torch.Generator().manual_seed(given.seed)

    losses = []
    for step in range(given.steps):
        x0 = to_float(data.fetch(batch_indices(len(data), given.batch_size, step, given.seed))).to(given.device)
        sigma = (torch.randn(len(x0), generator=generator) * 1.2 - 1.2).exp().to(given.device)
        noise = torch.randn(x0.shape, generator=generator).to(given.device)
        denoised = net(x0 + sigma.reshape(-1, 1, 1, 1) * noise, sigma)
        weight = (sigma**2 + 0.5**2) / (sigma * 0.5)**2
        loss = (weight.reshape(-1, 1, 1, 1) * (denoised - x0).square()).mean()
        losses.append(loss.item())
        encoder_optimizer.zero_grad()  # SAT
        structure.discriminator_loss(x0, denoised, sigma).backward()  # SAT, Eq. 9: reaches the encoder's weights only
        encoder_optimizer.step()  # SAT
        loss = loss + structure(x0, denoised, sigma)  # SADM 3, Eq. 6 and 10: reaches the denoiser only
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad(): torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - min(0.999, (step + 1) / (step + 10)))

    save_file(ema.model.state_dict(), given.out / "ema.safetensors")
    images, nfe = sample(Denoiser(ema.model.eval(), EDM()), range(given.samples), data.shape, karras_sigmas(12), device=given.device)
    np.savez(given.out / "samples.npz", arr_0=to_uint8(images).permute(0, 2, 3, 1).numpy())  # what `sadm evaluate` reads
    print(json.dumps(dict(first=losses[0], last=losses[-1], nfe=nfe, out=str(given.out))))


if __name__ == "__main__": main()
