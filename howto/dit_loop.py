"""DiT's training loop on latents (Peebles & Xie 2023) with the structural loss.

    python howto/dit_loop.py --data imagenet256_latents --size XL/2 --out _runs/howto-dit      # after `sadm latents imagenet256`
    python howto/dit_loop.py --data fashion16 --size S/2 --depth 2 --batch-size 32 --encoder-size 64 --steps 20      # a try on the pixels of small images, no autoencoder

Three lines, marked SADM, are structural guidance (Eq. 6); the lines marked SAT let the encoder learn adversarially
(Eq. 9 and 10). The structure is that of images: both sides, clean and predicted latents, are decoded by the frozen
autoencoder, through which the gradient flows, so that its blur is not what the encoder sees. A test removes the marked
lines and runs what remains.

Decoding costs more than the rest of the step for a small DiT: --decode takes only so many images of a batch for the
structural term. In DiT's own repository `diffusion.training_losses` hides the network's answer: have it return
`pred_xstart` (the model's first half, turned by `_predict_xstart_from_eps`) and give that to line 3.
"""

import argparse
import copy
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from sadm.data import LatentData, batch_indices, load_data
from sadm.diffusion import DDPM, variational_term
from sadm.discriminator import StructuralLoss  # SADM 1
from sadm.dit import DIT_SIZES, DiT
from sadm.encoders import efficientnet_lite0
from sadm.latent_structure import Decoded, LatentDecoder
from sadm.latents import SD_VAE, load_vae


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", default="imagenet256_latents", help="of sadm.data.DATASETS: latents, or images, which need no decoding")
    options.add_argument("--size", default="XL/2", help=f"of {', '.join(DIT_SIZES)}, and the patch: 2, 4 or 8")
    options.add_argument("--depth", type=int, help="fewer blocks than the published size, for a try")
    options.add_argument("--vae", default=SD_VAE, help="name on the Hugging Face hub, or a folder")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch-size", type=int, default=256)
    options.add_argument("--decode", type=int, default=32, help="images of each batch that are decoded for the structural term")
    options.add_argument("--lr", type=float, default=1e-4)
    options.add_argument("--encoder-size", type=int, default=224, help="images are resized to this side for the encoder")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--out", type=Path, default=Path("_runs/howto-dit"))
    given = options.parse_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(given.seed)

    data, (size, patch) = load_data(given.data), given.size.split("/")
    numbers = DIT_SIZES[size] | ({} if given.depth is None else dict(depth=given.depth))
    net = DiT(data.shape[-1], int(patch), data.shape[0], num_classes=int(data.labels.max()) + 1, **numbers).to(given.device)
    ema = copy.deepcopy(net).requires_grad_(False)
    optimizer = torch.optim.AdamW(net.parameters(), lr=given.lr, weight_decay=0)
    encoder = efficientnet_lite0(size=given.encoder_size).to(given.device)
    decode = LatentDecoder(load_vae(given.vae).to(given.device), data.scale) if isinstance(data, LatentData) else torch.nn.Identity()
    structure = StructuralLoss(Decoded(decode, encoder))  # SADM 2
    encoder_optimizer = torch.optim.Adam(encoder.parameters(), lr=given.lr / 100)  # SAT; the autoencoder stays as it is
    process, generator = DDPM(), torch.Generator().manual_seed(given.seed)
    column = lambda v: v.to(given.device, torch.float32).reshape(-1, 1, 1, 1)

    losses = []
    for step in range(given.steps):
        index = batch_indices(len(data), given.batch_size, step, given.seed)
        z0, y = data.x0(data.fetch(index), given.seed, step * given.batch_size + torch.arange(len(index))).to(given.device), data.labels[index].to(given.device)
        t = torch.randint(process.n_steps, (len(z0),), generator=generator).to(given.device)
        eps = torch.randn(z0.shape, generator=generator).to(given.device)
        alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
        zt = alpha * z0 + sigma * eps
        eps_hat, v = net(zt, t, y).chunk(2, 1)  # noise, and where the variance lies between its bounds
        z0_hat = (zt - sigma * eps_hat) / alpha
        loss = (eps_hat - eps).square().mean() + variational_term(process, z0, zt, t, z0_hat.detach(), v).mean()
        losses.append(loss.item())
        part, level = slice(given.decode), (sigma / alpha).flatten()  # noise level sigma_t / alpha_t of each image
        encoder_optimizer.zero_grad()  # SAT
        structure.discriminator_loss(z0[part], z0_hat[part], level[part]).backward()  # SAT, Eq. 9: reaches the encoder's weights only
        encoder_optimizer.step()  # SAT
        loss = loss + structure(z0[part], z0_hat[part], level[part])  # SADM 3, Eq. 6 and 10: reaches the denoiser only
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad(): torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - 0.9999)

    save_file(ema.state_dict(), given.out / "ema.safetensors")
    print(json.dumps(dict(first=losses[0], last=losses[-1], out=str(given.out))))


if __name__ == "__main__": main()
