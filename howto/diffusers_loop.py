"""Unconditional training in the style of diffusers' example, with accelerate, and with the structural loss.

    accelerate launch howto/diffusers_loop.py --steps 400 --out _runs/howto-diffusers

Three lines, marked SADM, are structural guidance (Eq. 6); the lines marked SAT let the encoder learn adversarially
(Eq. 9 and 10). A test removes the marked lines and runs what remains. The result is an ordinary DDPMPipeline folder.

What is particular here: the network predicts noise, from which line 3's x0_hat follows (`predicted_clean`); and each
process compares the images of its own batch, so give each GPU at least 16 (`sadm.experiments` compares the global batch).
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.utils.data import DataLoader, TensorDataset

from sadm.data import load_data
from sadm.diffusion import to_float
from sadm.discriminator import StructuralLoss  # SADM 1
from sadm.encoders import efficientnet_lite0


def predicted_clean(scheduler, model_output, xt, t):  # (B, C, H, W), (B, C, H, W), (B,) -> x0_hat (B, C, H, W), sigma_t / alpha_t (B,)
    "What any prediction type says of the clean image, and the noise level."
    alpha_bar = scheduler.alphas_cumprod.to(xt.device)[t]
    alpha, sigma = (v.sqrt().reshape(-1, 1, 1, 1) for v in (alpha_bar, 1 - alpha_bar))
    kinds = {"epsilon": lambda out: (xt - sigma * out) / alpha, "sample": lambda out: out, "v_prediction": lambda out: alpha * xt - sigma * out}
    return kinds[scheduler.config.prediction_type](model_output.float()), (sigma / alpha).flatten()


def main(argv=None):
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    options.add_argument("--data", default="fashion16", help="of sadm.data.DATASETS; or put your own DataLoader of images in [-1, 1] below")
    options.add_argument("--steps", type=int, default=400)
    options.add_argument("--batch-size", type=int, default=32, help="of each process")
    options.add_argument("--channels", type=int, default=32, help="width of the network")
    options.add_argument("--prediction-type", default="epsilon", choices=("epsilon", "sample", "v_prediction"))
    options.add_argument("--lr", type=float, default=1e-3)
    options.add_argument("--warmup", type=int, default=50)
    options.add_argument("--encoder-size", type=int, default=64, help="images are resized to this side for the encoder")
    options.add_argument("--mixed-precision", default="no", choices=("no", "bf16"))
    options.add_argument("--cpu", action="store_true")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("_runs/howto-diffusers"))
    given = options.parse_args(argv)
    accelerator = Accelerator(mixed_precision=given.mixed_precision, cpu=given.cpu)
    set_seed(given.seed, device_specific=True)

    data = load_data(given.data)  # your data: images (B, C, H, W) in [-1, 1]
    C, side = data.shape[0], data.shape[-1]
    loader = DataLoader(TensorDataset(data.images), given.batch_size, shuffle=True, drop_last=True)
    model = UNet2DModel(sample_size=side, in_channels=C, out_channels=C, layers_per_block=1, block_out_channels=(given.channels, 2 * given.channels), norm_num_groups=8,
                        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), attention_head_dim=8)
    scheduler = DDPMScheduler(1000, prediction_type=given.prediction_type)
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, power=0.75)
    ema.to(accelerator.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=given.lr)
    lr_scheduler = get_scheduler("cosine", optimizer, num_warmup_steps=given.warmup * accelerator.num_processes, num_training_steps=given.steps * accelerator.num_processes)
    model, optimizer, loader, lr_scheduler = accelerator.prepare(model, optimizer, loader, lr_scheduler)
    structure = StructuralLoss(efficientnet_lite0(size=given.encoder_size)).to(accelerator.device)  # SADM 2
    encoder_optimizer = torch.optim.Adam(structure.encoder.parameters(), lr=given.lr / 100)  # SAT

    set_seed(given.seed, device_specific=True)  # the noise of a run hangs on its seed, not on what was built before
    losses, step = [], 0
    while step < given.steps:
        for images, in loader:
            clean = to_float(images)
            noise = torch.randn_like(clean)
            t = torch.randint(scheduler.config.num_train_timesteps, (len(clean),), device=clean.device)
            noisy = scheduler.add_noise(clean, noise, t)
            model_output = model(noisy, t).sample
            target = {"epsilon": noise, "sample": clean, "v_prediction": scheduler.get_velocity(clean, noise, t)}[given.prediction_type]
            loss = F.mse_loss(model_output.float(), target)
            losses.append(loss.item())
            x0_hat, level = predicted_clean(scheduler, model_output, noisy, t)
            encoder_optimizer.zero_grad()  # SAT
            structure.discriminator_loss(clean, x0_hat, level).backward()  # SAT, Eq. 9: reaches the encoder's weights only
            for p in structure.encoder.parameters(): p.grad = None if p.grad is None else accelerator.reduce(p.grad, "mean")  # SAT: one encoder for all processes
            encoder_optimizer.step()  # SAT
            loss = loss + structure(clean, x0_hat, level)  # SADM 3, Eq. 6 and 10: reaches the denoiser only
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.)
            optimizer.step()
            lr_scheduler.step()
            optimizer.zero_grad()
            ema.step(model.parameters())
            step += 1
            if step == given.steps: break

    if accelerator.is_main_process:
        unet = accelerator.unwrap_model(model)
        ema.copy_to(unet.parameters())
        DDPMPipeline(unet, scheduler).save_pretrained(given.out)
        print(json.dumps(dict(first=losses[0], last=losses[-1], out=str(given.out))))
    accelerator.end_training()


if __name__ == "__main__": main()
