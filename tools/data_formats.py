"""Images per second of the formats a prepared set could have: memory-mapped uint8, Arrow (datasets), tar shards (webdataset), folders.

    pip install datasets webdataset && python tools/data_formats.py

Random order, batches of 128, 64x64 pixels, one process; nbs/09_data quotes the result.
"""

import io
import tempfile
import time
from pathlib import Path

import datasets
import numpy as np
import torch
import webdataset
from PIL import Image

from sadm.data import image_data
from sadm.loader import loader

N, BATCH = 4096, 128


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def rate(batches):
    batches = iter(batches)
    for _ in range(4): next(batches)
    begun = time.perf_counter()
    for _ in range(N // BATCH): assert next(batches).shape == (BATCH, 3, 64, 64)
    return N / (time.perf_counter() - begun)


def to_float(arrays): return torch.from_numpy(np.ascontiguousarray(arrays)).float() / 127.5 - 1


def orders():
    while True: yield from np.random.permutation(N).reshape(-1, BATCH)


def of_loader(data):
    for batch in loader(data, BATCH): yield batch.x0


def of_arrow(folder, decode):
    table = datasets.load_from_disk(folder)
    for index in orders(): yield to_float(np.stack([decode(data) for data in table[index]["image"]]))


def of_tar(url, decode):
    for arrays in webdataset.WebDataset(url, shardshuffle=False).repeat().shuffle(1000).to_tuple("bin").map(lambda sample: decode(sample[0])).batched(BATCH, collation_fn=np.stack): yield to_float(arrays)


def main():
    rng = np.random.default_rng(0)
    smooth = [np.asarray(Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)) for _ in range(N)]
    pixels = np.stack(smooth)
    raw = lambda data: np.frombuffer(data, np.uint8).reshape(64, 64, 3).transpose(2, 0, 1)
    coded = lambda data: np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        np.save(folder / "images.npy", pixels.transpose(0, 3, 1, 2))
        rows = {"memory-mapped uint8": of_loader(image_data("a", np.load(folder / "images.npy", mmap_mode="c"), np.zeros(N, int)))}
        for name, encode, decode in (("pixels", lambda x: x.tobytes(), raw), ("PNG", png, coded)):
            files = [encode(x) for x in pixels]
            datasets.Dataset.from_dict({"image": files}, features=datasets.Features(image=datasets.Value("binary"))).save_to_disk(folder / name)
            rows[f"Arrow, {name}"] = of_arrow(str(folder / name), decode)
            with webdataset.TarWriter(str(folder / f"{name}.tar")) as tar:
                for i, data in enumerate(files): tar.write({"__key__": f"{i:06d}", "bin": data})
            rows[f"webdataset, {name} (shuffle buffer of 1,000)"] = of_tar(str(folder / f"{name}.tar"), decode)
        for name, batches in rows.items(): print(f"{name:<45} {rate(batches):>10,.0f} images/s")


if __name__ == "__main__": main()
