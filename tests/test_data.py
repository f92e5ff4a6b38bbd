"""The twelve data sets in miniature, in the layout in which they are published: read, refused, damaged, interrupted. The pictures are noise."""

import copy
import hashlib
import io
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
import zlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

import sadm.checkpoints
import sadm.prepare
from sadm.cli import main
from sadm.data import PackedImages, load_data
from sadm.originals import ORIGINALS
from sadm.prepare import prepare, verify

# ---------------------------------------------------------------- files as published


def picture(name, size=None, form="JPEG", mode="RGB", **options):
    "An encoded picture, no two alike; its size depends on the name if none is given."
    seed = zlib.crc32(name.encode())
    size = size or [(40, 30), (30, 41), (97, 64), (300, 421), (57, 57), (512, 640), (33, 90), (1030, 1101)][seed % 8]
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC).convert(mode)
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


def packed(name, content):
    "A file's bytes; of a dict, those of the archive it stands for, with entries for the folders as tar and zip write them."
    if not isinstance(content, dict): return content
    file, entries = io.BytesIO(), {}
    for path, data in content.items():
        if not {"..", "/"} & set(PurePosixPath(path).parts): entries |= {f"{folder}/": b"" for folder in reversed(PurePosixPath(path).parents[:-1])}
        entries[path] = packed(path, data)
    if name.endswith(".zip"):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for path, data in entries.items(): archive.writestr(path, data)
    else:
        with tarfile.open(fileobj=file, **dict(mode="w:gz", compresslevel=1) if name.endswith("gz") else dict(mode="w")) as archive:
            for path, data in entries.items():
                info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(path)
                if path.endswith("/"): info.type = tarfile.DIRTYPE
                elif info is not data: info.size = len(data)
                archive.addfile(info, io.BytesIO(data if info is not data else b""))
    return file.getvalue()


INTO = {"ILSVRC2012_img_train.tar": "train", "ILSVRC2012_img_val.tar": "val", "Partitions.zip": "Partitions", "DF20M-metadata.zip": "DF20M-metadata", "images1024x1024": "images1024x1024"}


def unpack(folder, content):
    "Files below a folder; an archive among them into a folder of its name if it has none itself."
    for path, data in content.items():
        if isinstance(data, dict): unpack(folder if any("/" in inner for inner in data) else folder / PurePosixPath(path).stem, data)
        else:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


def published(folder, originals):
    "The files as they are published."
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in originals.items():
        if isinstance(content, dict) and "." not in name: unpack(folder / name, content)  # FFHQ is published as a folder
        else: (folder / name).write_bytes(packed(name, content))


def unpacked(folder, originals):
    "The same as folders; FFHQ, which is one, as a zip."
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in originals.items():
        if name == "images1024x1024": (folder / f"{name}.zip").write_bytes(packed(".zip", {f"{name}/{path}": data for path, data in content.items()}))
        elif isinstance(content, dict): unpack(folder / INTO.get(name, ""), content)
        else: (folder / name).write_bytes(content)


class Python2(pickle._Pickler):
    "Writes str and bytes as Python 2's strings."
    dispatch = dict(pickle._Pickler.dispatch)

    def save_string(self, text):
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write((pickle.SHORT_BINSTRING + bytes([len(data)]) if len(data) < 256 else pickle.BINSTRING + len(data).to_bytes(4, "little")) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value):
    "A pickle as Python 2 and numpy 1 wrote it."
    Python2(file := io.BytesIO(), 2).dump(value)
    return file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def mat(**variables):
    "A MATLAB file."
    savemat(file := io.BytesIO(), variables, do_compression=True)
    return file.getvalue()


def struct(rows):
    "MATLAB's array of structures, (N,)."
    table = np.zeros(len(rows), [(field, object) for field in rows[0]])
    for i, row in enumerate(rows): table[i] = tuple(row.values())
    return table


def text(lines): return "".join(f"{line}\n" for line in lines).encode()


def shuffled(items, seed=0): return random.Random(seed).sample(list(items), len(items))


# ---------------------------------------------------------------- the twelve in miniature


class Mini(NamedTuple):
    originals: dict                 # file: bytes, or what is in the archive
    classes: list                   # names by label
    truth: dict                     # split: key: (label, the original file's bytes or the pixels (3, H, W))
    attributes: dict | None = None  # CelebA's: key: forty of 0, 1


def cifar10():
    rng, tree, truth = np.random.default_rng(0), {}, {"train": {}, "test": {}}
    classes = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for batch in ("data_batch_4", "readme.html", "test_batch", "data_batch_3", "batches.meta", "data_batch_2", "data_batch_5", "data_batch_1"):
        data, labels = rng.integers(0, 256, (20, 3072), dtype=np.uint8), rng.permutation(np.arange(20) % 10).tolist()
        tree[f"cifar-10-batches-py/{batch}"] = python2_pickle({b"batch_label": b"a batch", b"labels": labels, b"data": data, b"filenames": [b"leptodactylus_pentadactylus_s_%06d.png" % i for i in range(20)]})
        if "_batch" in f"_{batch}" and batch != "batches.meta":
            truth["test" if batch == "test_batch" else "train"] |= {f"{batch}/{i:05d}": (labels[i], np.stack([data[i, 1024 * c:1024 * (c + 1)].reshape(32, 32) for c in range(3)])) for i in range(20)}
    tree["cifar-10-batches-py/readme.html"] = b'<meta HTTP-EQUIV="REFRESH" content="0; url=http://www.cs.toronto.edu/~kriz/cifar.html">'
    tree["cifar-10-batches-py/batches.meta"] = python2_pickle({b"num_cases_per_batch": 20, b"label_names": [name.encode() for name in classes], b"num_vis": 3072})
    return Mini({"cifar-10-python.tar.gz": tree}, classes, truth)


def celeba64():
    names, partition = [f"{i:06d}.jpg" for i in range(1, 13)], [0, 2, 0, 1, 0, 0, 2, 1, 0, 1, 2, 0]
    files = {name: picture(name, (178, 218)) for name in names}
    crop = lambda data: np.array(Image.open(io.BytesIO(data)).crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    has = dict(zip(names, np.random.default_rng(0).integers(0, 2, (12, 40))))
    rows = [f"{name} " + " ".join(f"{2 * value - 1:2d}" for value in has[name]) for name in names]
    return Mini({"img_align_celeba.zip": {f"img_align_celeba/{name}": files[name] for name in shuffled(names)},
                 "list_attr_celeba.txt": text([len(names), " ".join(f"Attribute_{i}" for i in range(40)) + " ", *rows]),
                 "list_eval_partition.txt": text(f"{name} {part}" for name, part in zip(names, partition))}, ["face"],
                {split: {name: (0, crop(files[name])) for name, part in zip(names, partition) if part == p} for p, split in enumerate(("train", "valid", "test"))}, has)


def ffhq64():
    files = {f"{i // 1000 * 1000:05d}/{i:05d}.png": picture(f"{i}.png", (1024, 1024), "PNG", compress_level=1) for i in (0, 1, 999, 1000, 69_999)}
    small = lambda data: np.array(Image.open(io.BytesIO(data)).resize((64, 64), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    return Mini({"images1024x1024": {**files, "LICENSE.txt": b"Creative Commons"}}, ["face"], {"train": {PurePosixPath(path).stem: (0, small(data)) for path, data in files.items()}})


def imagenet():
    leaves = {1: "n02119789", 2: "n02100735", 3: "n01440764", 4: "n02096294"}  # by ILSVRC2012_ID; sorted they are 3, 4, 2, 1
    inner, classes = {5: "n00001740", 6: "n02083346"}, ["n01440764", "n02096294", "n02100735", "n02119789"]
    train = {wnid: {f"{wnid}_{n}.JPEG": picture(f"{wnid}_{n}") for n in (10026, 9, 2933, 18)} for wnid in leaves.values()}
    train["n02100735"]["n02100735_9.JPEG"] = picture("a PNG of that name", form="PNG")
    truth = [3, 1, 4, 2, 2, 3, 1, 1, 4]  # ILSVRC2012_ID of validation image 1, 2, …
    val = {f"ILSVRC2012_val_{i:08d}.JPEG": picture(f"val {i}") for i in range(1, 10)}
    kit = dict(meta=mat(synsets=struct([dict(ILSVRC2012_ID=np.uint16(i), WNID=wnid, words="some words, others", gloss="what it means", num_children=np.uint8(0 if i in leaves else 2),
                                             children=np.array([] if i in leaves else [1, 2], np.uint16), wordnet_height=np.uint8(i // 5), num_train_images=np.uint16(4)) for i, wnid in (leaves | inner).items()]).reshape(-1, 1)))
    return Mini({"ILSVRC2012_img_train.tar": {f"{wnid}.tar": train[wnid] for wnid in ("n02119789", "n01440764", "n02096294", "n02100735")},
                 "ILSVRC2012_img_val.tar": {name: val[name] for name in shuffled(val)},
                 "ILSVRC2012_devkit_t12.tar.gz": {f"ILSVRC2012_devkit_t12/{path}": data for path, data in {"COPYING": b"", "data/ILSVRC2012_validation_ground_truth.txt": text(truth), "data/meta.mat": kit["meta"], "readme.txt": b"Development kit"}.items()}}, classes,
                {"train": {f"{wnid}/{name}": (classes.index(wnid), data) for wnid in train for name, data in train[wnid].items()},
                 "val": {name: (classes.index(leaves[i]), val[name]) for name, i in zip(val, truth)}})


def food101():
    classes = ["apple_pie", "baby_back_ribs", "hot_and_sour_soup", "waffles"]
    keys = [f"{name}/{number}" for name in classes for number in (1005649, 134, 2986199, 68684, 1014775)]
    part = {"train": [key for i, key in enumerate(keys) if i % 5 not in (1, 3)], "test": [key for i, key in enumerate(keys) if i % 5 in (1, 3)]}
    files = {f"food-101/images/{key}.jpg": picture(key) for key in shuffled(keys)}
    meta = {"classes.txt": text(classes), "labels.txt": text(name.replace("_", " ").capitalize() for name in classes)} | {f"{split}.txt": text(part[split]) for split in part}
    meta |= {f"{split}.json": json.dumps({name: [key for key in part[split] if key.startswith(name)] for name in classes}).encode() for split in part}
    return Mini({"food-101.tar.gz": files | {"food-101/license_agreement.txt": b"", **{f"food-101/meta/{name}": data for name, data in meta.items()}}}, classes,
                {split: {key: (classes.index(key.split("/")[0]), files[f"food-101/images/{key}.jpg"]) for key in part[split]} for split in part})


def sun397():
    classes = ["/a/abbey", "/a/apartment_building/outdoor", "/c/church/indoor", "/c/church/outdoor"]
    forms = [{}, dict(form="BMP"), dict(form="PNG", mode="RGBA"), dict(form="GIF", mode="P"), dict(form="PNG", mode="L")]  # all called .jpg
    keys = [f"{name}/sun_{n}.jpg" for n in ("aqswjsnjlrfzzhiz", "bzsbvhmvpeunelpt", "aaalbzqrimafwbiv", "bxyqxhpwqipvkvqu", "aejaeyaajzeeyyxp") for name in classes]
    files = {key: picture(key, (90, 60 + i), **forms[i % 5]) for i, key in enumerate(keys)}
    part = {"Training_01.txt": keys[4:12], "Testing_01.txt": keys[12:], "Training_02.txt": keys[:8], "Testing_02.txt": keys[8:16]}
    label = lambda key: max(i for i, name in enumerate(classes) if key.startswith(f"{name}/sun_"))
    tree = {f"SUN397{key}": files[key] for key in shuffled(keys)} | {"SUN397/c/church/outdoor/sun_bhenjvsvrtumjuri.jpg": b"badly encoded", "SUN397/ClassName.txt": text(classes)}
    return Mini({"SUN397.tar.gz": tree, "Partitions.zip": {"ClassName.txt": text(classes)} | {name: text(part[name]) for name in part}}, classes,
                {split: {key: (label(key), files[key]) for key in some} for split, some in dict(train=part["Training_01.txt"], test=part["Testing_01.txt"], all=keys).items()})


def df20m_mini():
    names = {3: "Amanita muscaria (L.) Lam.", 57: "Boletus edulis Bull., 1782", 120: "Russula", 300: "Xerocomus sp."}  # by class_id; labels 0, 1, 2, 3
    rows = [(f"2238{i}{class_id}-1670{i}.JPG", class_id) for i in range(5) for class_id in (300, 3, 120, 57)]
    files = {name: picture(name) for name, _ in rows}
    table = lambda some: text(["gbifID,eventDate,taxonID,genus,scientificName,ImageUniqueID,species,class_id,image_path,Habitat"]
                              + [f'2238,2017-08-31,11,"{names[i].split()[0]}","{names[i]}",aa-{k},{"" if i == 120 else names[i].split()[0]},{i},{name},"Mixed woodland (with coniferous, deciduous trees)"' for k, (name, i) in enumerate(some)])
    truth = lambda some: {name.lower(): ([3, 57, 120, 300].index(i), files[name]) for name, i in some}
    return Mini({"DF20M-images.tar.gz": {f"DF20M/{name.replace('.JPG', '.jpg') if k % 3 else name}": files[name] for k, name in enumerate(shuffled(files))},  # the table says .JPG
                 "DF20M-metadata.zip": {"DF20M-public_test_metadata_PROD.csv": table(rows[12:]), "DF20M-train_metadata_PROD.csv": table(rows[:12])}}, list(names.values()),
                {"train": truth(rows[:12]), "test": truth(rows[12:])})


def caltech101():
    classes = ["Faces", "Faces_easy", "accordion", "yin_yang"]
    names = [f"{name}/image_{i:04d}.jpg" for i in range(1, 5) for name in ["yin_yang", "BACKGROUND_Google", *classes[:3]]]
    files = {name: picture(name, form="JPEG", mode="L" if name.endswith("3.jpg") else "RGB") for name in names}
    apple = b"\0\x05\x16\x07\0\x02\0\0Mac OS X        " + bytes(60)
    return Mini({"caltech-101.zip": {"caltech-101/101_ObjectCategories.tar.gz": {"101_ObjectCategories/BACKGROUND_Google/tmp": b"", **{f"101_ObjectCategories/{name}": files[name] for name in names}},
                                     "__MACOSX/._caltech-101": apple, "__MACOSX/caltech-101/._101_ObjectCategories.tar.gz": apple,
                                     "caltech-101/Annotations.tar": {f"Annotations/{name}/annotation_0001.mat": mat(box_coord=np.array([[1, 2, 3, 4]])) for name in ("Faces_2", "Faces_3", "accordion", "yin_yang")},
                                     "__MACOSX/caltech-101/._Annotations.tar": apple, "caltech-101/show_annotation.m": b"function show_annotation", "__MACOSX/caltech-101/._show_annotation.m": apple}}, classes,
                {"train": {name: (classes.index(name.split("/")[0]), data) for name, data in files.items() if not name.startswith("BACK")}})


def cub200():
    classes = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    names = [f"{classes[k]}/{classes[k][4:]}_{i:04d}_7960{k}.jpg" for k in (0, 1, 2) for i in (46, 9, 2, 34)]  # ids 1, 2, …, by class
    training, files = [1, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 0], {name: picture(name) for name in names}
    tree = {"attributes.txt": text(["1 has_bill_shape::curved_(up_or_down)"]), "CUB_200_2011/README": b"Caltech-UCSD Birds", "CUB_200_2011/attributes/image_attribute_labels.txt": text(["1 1 0 3 27.7080"]),
            "CUB_200_2011/bounding_boxes.txt": text(f"{i} 60.0 27.0 325.0 304.0" for i in range(1, 13)), "CUB_200_2011/classes.txt": text(f"{i} {name}" for i, name in enumerate(classes, 1)),
            "CUB_200_2011/image_class_labels.txt": text(f"{i} {classes.index(name.split('/')[0]) + 1}" for i, name in enumerate(names, 1)), **{f"CUB_200_2011/images/{name}": files[name] for name in shuffled(names)},
            "CUB_200_2011/images.txt": text(f"{i} {name}" for i, name in enumerate(names, 1)), "CUB_200_2011/parts/parts.txt": text(["1 back"]), "CUB_200_2011/train_test_split.txt": text(f"{i} {t}" for i, t in enumerate(training, 1))}
    return Mini({"CUB_200_2011.tgz": tree}, classes, {split: {name: (classes.index(name.split("/")[0]), files[name]) for name, t in zip(names, training) if t == wanted} for split, wanted in (("train", 1), ("test", 0))})


def artbench10(n=2):
    classes = "art_nouveau baroque expressionism impressionism post_impressionism realism renaissance romanticism surrealism ukiyo_e".split()
    keys = {split: [f"{style}/édouard-manet_{split}-{i}-1906.jpg" for i in range(n) for style in classes] for split in ("train", "test")}
    files = {f"{split}/{key}": picture(f"{split}/{key}", (256, 256) if n == 2 else (12, 12)) for split in keys for key in (keys[split] if n == 2 or split == "train" else [])}
    return Mini({"artbench-10-imagefolder-split.tar": {f"artbench-10-imagefolder-split/{path}": files[path] for path in shuffled(files)} | {"artbench-10-imagefolder-split/._train": b"Mac OS X"}}, classes,
                {split: {key: (classes.index(key.split("/")[0]), files.get(f"{split}/{key}")) for key in keys[split]} for split in keys})


def flowers102():
    labels = [3, 1, 2, 2, 3, 1, 1, 3, 2, 1, 2, 3, 3, 3, 1]  # of image 1, 2, …
    part = dict(tstid=[13, 2, 5, 3, 14], trnid=[9, 1, 6, 12], valid=[4, 15, 8, 10, 11, 7])
    files = {i: picture(f"flower {i}") for i in range(1, 16)}
    some = lambda *names: {f"image_{i:05d}.jpg": (labels[i - 1] - 1, files[i]) for name in names for i in part[name]}
    return Mini({"102flowers.tgz": {f"jpg/image_{i:05d}.jpg": files[i] for i in shuffled(files)}, "imagelabels.mat": mat(labels=np.array([labels], np.uint8)),
                 "setid.mat": mat(**{name: np.array([ids], np.uint16) for name, ids in part.items()})}, ["class 1", "class 2", "class 3"],
                dict(train=some("trnid"), val=some("valid"), test=some("tstid"), all=some(*part)))


def stanford_cars():
    classes = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "smart fortwo Convertible 2012"]
    labels = dict(train=[3, 1, 1, 2, 3, 2, 1], test=[2, 3, 1, 1, 3])
    files = {split: {f"{i:05d}.jpg": picture(f"{split} car {i}") for i in range(1, len(labels[split]) + 1)} for split in labels}
    row = lambda name, **label: dict(bbox_x1=np.uint8(39), bbox_y1=np.uint16(116), bbox_x2=np.uint16(569), bbox_y2=np.uint16(375), **label, fname=name)
    annotations = {split: struct([row(name, **{"class": np.uint8(label)}) for name, label in zip(files[split], labels[split])]).reshape(1, -1) for split in labels}
    kit = {"cars_meta.mat": mat(class_names=np.array([classes], object)), "cars_train_annos.mat": mat(annotations=annotations["train"]), "cars_test_annos.mat": mat(annotations=struct([row(name) for name in files["test"]]).reshape(1, -1)), "README.txt": b"cars"}
    return Mini({**{f"cars_{split}.tgz": {f"cars_{split}/{name}": files[split][name] for name in shuffled(files[split])} for split in files},
                 "car_devkit.tgz": {f"devkit/{name}": data for name, data in kit.items()}, "cars_test_annos_withlabels.mat": mat(annotations=annotations["test"])}, classes,
                {split: {name: (label - 1, files[split][name]) for name, label in zip(files[split], labels[split])} for split in labels})


BUILD = {build.__name__: lru_cache(build) for build in (cifar10, celeba64, ffhq64, imagenet, food101, sun397, df20m_mini, caltech101, cub200, artbench10, flowers102, stanford_cars)}
CASES = [(name, split) for name, original in ORIGINALS.items() for split in original.splits]


def miniature(name): return copy.deepcopy(BUILD[name]())


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    "The data folder; nothing is ever fetched."
    def refuse(url, *_, **__): raise ConnectionError(f"a test wanted to fetch {url}")
    monkeypatch.setattr(sadm.prepare, "download", refuse)
    monkeypatch.setenv("SADM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("TQDM_DISABLE", "1")
    return tmp_path / "data"


def tree(folder):
    "The files below a folder and their content, but for prepared sets and the remembered checksums of originals."
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*"))}
    return {str(name): path.read_bytes() for name, path in paths.items() if path.is_file() and "prepared" not in name.parts and name.name != "checked.json"}


# ---------------------------------------------------------------- read


def centre_crop(image, size):
    "ADM's, stated once more: halve by boxes, scale by a cubic, cut the array. -> (3, size, size)"
    while min(*image.size) >= 2 * size: image = image.resize(tuple(x // 2 for x in image.size), resample=Image.Resampling.BOX)
    scale = size / min(*image.size)
    pixels = np.array(image.resize(tuple(round(x * scale) for x in image.size), resample=Image.Resampling.BICUBIC))
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y:y + size, x:x + size].transpose(2, 0, 1)


def assert_is(name, split, mini):
    "Count, keys, labels, classes, manifest, files and pixels of a prepared split. -> manifest"
    manifest, truth = verify(name, split), mini.truth[split]
    keys, folder = sorted(truth), Path(os.environ["SADM_DATA"]) / "prepared" / f"{name}-{split}"
    labels = [truth[key][0] for key in keys]
    assert (folder / "keys.txt").read_text(encoding="utf-8").splitlines() == keys
    assert manifest["count"] == len(keys) and manifest["classes"] == mini.classes and manifest["per_class"] == [labels.count(i) for i in range(len(mini.classes))]
    if mini.attributes: assert np.array_equal(np.load(folder / "attributes.npy"), [mini.attributes[key] for key in keys]) and manifest["attributes"][0] == "Attribute_0" and len(manifest["attributes"]) == 40
    for loaded in ("imagenet256", "imagenet512") if name == "imagenet" else (name,):
        data, size = load_data(loaded, split), 512 if loaded == "imagenet512" else 256
        assert len(data) == len(keys) and data.labels.dtype == torch.int64 and data.labels.tolist() == labels
        wanted = []
        for i, content in enumerate(truth[key][1] for key in keys):
            if isinstance(content, bytes):
                assert data.images.encoded(i) == content, f"{keys[i]}: the original's bytes are kept"
                content = centre_crop(Image.open(io.BytesIO(content)).convert("RGB"), size)
            wanted.append(torch.from_numpy(content))
        images = data.fetch(torch.arange(len(data)))
        assert images.dtype == torch.uint8 and torch.equal(images, torch.stack(wanted))
    return manifest


@pytest.mark.parametrize("name, split", CASES)
def test_read_from_the_published_layout_and_from_folders(name, split, tmp_path, monkeypatch):
    mini, content = miniature(name), []
    for put in (published, unpacked):
        monkeypatch.setenv("SADM_DATA", str(tmp_path / put.__name__))
        put(tmp_path / put.__name__ / "downloads" / name, mini.originals)
        before = tree(tmp_path)
        prepare(name, split, unverified=True)
        content.append(assert_is(name, split, mini)["content"])
        assert tree(tmp_path) == before, "the originals are as they were"
    assert content[0] == content[1], "archives and folders give the same set"


def test_flowers_archive_that_is_no_gzip_in_spite_of_its_name(data):
    "The published 102flowers.tgz has been seen as a plain tar."
    mini = miniature("flowers102")
    published(data / "downloads/flowers102", mini.originals | {"102flowers.tgz": packed("tar", mini.originals["102flowers.tgz"])})
    prepare("flowers102", "all", unverified=True)
    assert_is("flowers102", "all", mini)


def test_imagenet_validation_images_in_folders_of_synsets(data):
    mini, source = miniature("imagenet"), data / "downloads/imagenet"
    for name, (label, content) in mini.truth["val"].items(): unpack(source / "val" / mini.classes[label], {name: content})
    prepare("imagenet", "val", unverified=True)
    truth = {f"{mini.classes[label]}/{name}": (label, content) for name, (label, content) in mini.truth["val"].items()}
    assert_is("imagenet", "val", mini._replace(truth={"val": truth}))


def test_original_shards_are_ordinary_tars(data):
    mini = miniature("sun397")
    published(data / "downloads/sun397", mini.originals)
    with tarfile.open(prepare("sun397", "all", unverified=True) / "shard-00000.tar") as shard:
        assert {f"/{info.name}": shard.extractfile(info).read() for info in shard} == {key: content for key, (_, content) in mini.truth["all"].items()}


def test_source_elsewhere(tmp_path):
    mini = miniature("cub200")
    unpacked(tmp_path / "elsewhere", mini.originals)
    prepare("cub200", "test", tmp_path / "elsewhere", unverified=True)
    assert_is("cub200", "test", mini)


def test_tar_of_a_folder_as_people_repack_it(data):
    "`tar cf ... -C FOLDER .` begins with an entry for the folder itself, names begin with ./"
    mini = miniature("artbench10")
    unpack(data / "once", mini.originals[ART])
    (data / "downloads/artbench10").mkdir(parents=True)
    with tarfile.open(data / "downloads/artbench10" / ART, "w") as archive: archive.add(data / "once", ".")
    prepare("artbench10", "train", unverified=True)
    assert_is("artbench10", "train", mini)


def test_source_that_cannot_be_written_to(data, monkeypatch):
    "ImageNet on a cluster is often a folder of somebody else."
    mini, real = miniature("imagenet"), sadm.prepare.replace_file
    published(data / "downloads/imagenet", mini.originals)
    def refuse(path, write):
        if "downloads" in Path(path).parts: raise PermissionError(13, "Permission denied", str(path))
        real(path, write)
    monkeypatch.setattr(sadm.prepare, "replace_file", refuse)
    monkeypatch.setattr(sadm.checkpoints, "replace_file", refuse)  # of write_json
    prepare("imagenet", "val", unverified=True)
    assert_is("imagenet", "val", mini)


def test_manifest_names_the_archive_that_was_read(data):
    "Also one that is not among the published files."
    unpacked(data / "downloads/ffhq64", miniature("ffhq64").originals)
    sources = json.loads((prepare("ffhq64", "train", unverified=True) / "manifest.json").read_text())["sources"]
    assert sources == {"images1024x1024.zip": f"sha256:{hashlib.sha256((data / 'downloads/ffhq64/images1024x1024.zip').read_bytes()).hexdigest()}"}


def test_folder_with_a_file_missing_says_which(data):
    "And not only that a fetch of everything failed, which nobody asked for."
    for name, split, missing in (("cifar10", "train", "cifar-10-batches-py/data_batch_3"), ("food101", "test", "food-101/meta/test.txt"), ("stanford_cars", "train", "devkit/cars_meta.mat")):
        unpacked(data / "downloads" / name, miniature(name).originals)
        (data / "downloads" / name / missing).unlink()
        with pytest.raises((FileNotFoundError, ConnectionError), match=PurePosixPath(missing).name): prepare(name, split, unverified=True)


# ---------------------------------------------------------------- what is published


@pytest.mark.parametrize("name", ORIGINALS)
def test_other_checksums_and_other_counts_are_refused(name, data, monkeypatch):
    mini, original, split = miniature(name), ORIGINALS[name], next(iter(ORIGINALS[name].splits))
    published(data / "downloads" / name, mini.originals)
    before = tree(data)
    for file in original.files:
        if file.checksum is None: continue
        kind, path = file.checksum.split(":")[0], data / "downloads" / name / file.name
        with pytest.raises(ValueError) as refused: prepare(name, split)
        for said in (str(path), file.checksum, f"{kind}:{hashlib.file_digest(io.BytesIO(path.read_bytes()), kind).hexdigest()}", "--unverified"): assert said in str(refused.value)
        assert not (data / "prepared" / f"{name}-{split}").exists()
        right = tuple(other._replace(checksum=None) if other.name == file.name else other for other in ORIGINALS[name].files)
        monkeypatch.setitem(ORIGINALS, name, replace(ORIGINALS[name], files=right))  # as if this one had been right
    with pytest.raises(ValueError, match=f"{len(mini.truth[split])} images of {len(mini.classes)} classes, published are {original.splits[split]} of {original.classes}"): prepare(name, split)
    assert tree(data) == before and not (data / "prepared" / f"{name}-{split}").exists()
    with pytest.raises(FileNotFoundError, match="begun and not finished"): load_data({"imagenet": "imagenet256"}.get(name, name), split)
    prepare(name, split, unverified=True)
    assert assert_is(name, split, mini)["unverified"] is True


def test_a_miniature_of_the_published_counts_needs_no_word(data, monkeypatch):
    mini = miniature("artbench10")
    monkeypatch.setitem(ORIGINALS, "artbench10", replace(ORIGINALS["artbench10"], splits=dict(train=20, test=20)))
    published(data / "downloads/artbench10", mini.originals)
    prepare("artbench10", "test")
    manifest = assert_is("artbench10", "test", mini)
    assert manifest["unverified"] is False
    archive = (data / "downloads/artbench10/artbench-10-imagefolder-split.tar").read_bytes()
    assert manifest["sources"] == {"artbench-10-imagefolder-split.tar": f"sha256:{hashlib.sha256(archive).hexdigest()}"}


def test_verify_names_the_file_that_changed(data):
    mini = miniature("artbench10")
    published(data / "downloads/artbench10", mini.originals)
    folder = prepare("artbench10", "train", unverified=True)
    for path in [path for path in sorted(folder.iterdir()) if path.name != "manifest.json"]:
        whole = path.read_bytes()
        for changed, said in ((whole[:-1] + bytes([whole[-1] ^ 1]), "has changed"), (whole[:-1], f"has {len(whole) - 1} bytes"), (None, "is missing")):
            path.unlink() if changed is None else path.write_bytes(changed)
            with pytest.raises(ValueError, match=f"{path.name} {said}"): verify("artbench10", "train")
        path.write_bytes(whole)
    (folder / "more.txt").write_text("more")
    with pytest.raises(ValueError, match="more.txt does not belong"): verify("artbench10", "train")


# ---------------------------------------------------------------- damage


def cut(name, file, share):
    "The set with one of its files cut off at a share of its content."
    originals = miniature(name).originals
    whole = packed(file, originals[file])
    return originals | {file: whole[:int(share * len(whole.rstrip(b"\0")))]}


def with_member(name, archive, path, content, drop=None):
    "The set with one more or another member in an archive (or one less)."
    originals = miniature(name).originals
    originals[archive] = {member: data for member, data in originals[archive].items() if drop is None or drop not in member} | ({path: content} if path else {})
    return originals


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def enormous():
    "A PNG of a few bytes that says it has 30,000 x 30,000 pixels."
    png = picture("big", (9, 7), "PNG")
    head = png[12:16] + (30_000).to_bytes(4, "big") * 2 + png[24:29]
    return png[:12] + head + zlib.crc32(head).to_bytes(4, "big") + png[33:]


def half(data): return data[:len(data) // 2]


def member_offset(whole, k):
    "Where member number k of a tar begins."
    with tarfile.open(fileobj=io.BytesIO(whole)) as archive: return archive.getmembers()[k].offset


def header_turned(whole, k):
    "A tar with one bit turned in the checksum of its member number k's header."
    place = member_offset(whole, k) + 150
    return whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1:]


def flipped(name, file, share=0.5):
    "The set with one bit of one file turned."
    originals = miniature(name).originals
    whole = bytearray(packed(file, originals[file]))
    whole[int(share * len(whole))] ^= 16
    return originals | {file: bytes(whole)}


ART, INNER, BATCHES = "artbench-10-imagefolder-split.tar", "caltech-101/101_ObjectCategories.tar.gz", "cifar-10-batches-py/"
BROKEN = "truncated or damaged"
DAMAGE = {
    **{f"tar cut at {share}": ("artbench10", "train", lambda share=share: cut("artbench10", ART, share), BROKEN) for share in (0, 0.001, 0.1, 0.5, 0.9, 0.999)},
    **{f"tar.gz cut at {share}": ("food101", "train", lambda share=share: cut("food101", "food-101.tar.gz", share), BROKEN) for share in (0.0001, 0.1, 0.5, 0.9, 0.9999)},
    **{f"tgz cut at {share}": ("cub200", "test", lambda share=share: cut("cub200", "CUB_200_2011.tgz", share), BROKEN) for share in (0.1, 0.5, 0.9999)},
    **{f"zip cut at {share}": ("celeba64", "train", lambda share=share: cut("celeba64", "img_align_celeba.zip", share), BROKEN) for share in (0, 0.1, 0.5, 0.9, 0.9999)},
    "tar.gz in a zip cut": ("caltech101", "train", lambda: with_member("caltech101", "caltech-101.zip", INNER, half(packed(".tar.gz", miniature("caltech101").originals["caltech-101.zip"][INNER])), drop="__MACOSX"), BROKEN),
    "tar in a tar cut": ("imagenet", "train", lambda: with_member("imagenet", "ILSVRC2012_img_train.tar", "n01440764.tar", half(packed(".tar", miniature("imagenet").originals["ILSVRC2012_img_train.tar"]["n01440764.tar"]))), BROKEN),
    "bit turned in a tar.gz": ("food101", "train", lambda: flipped("food101", "food-101.tar.gz"), f"{BROKEN}|no readable image"),
    "bit turned in a zip": ("celeba64", "train", lambda: flipped("celeba64", "img_align_celeba.zip"), f"{BROKEN}|no readable image"),
    "tar cut between two members": ("artbench10", "train", lambda: miniature("artbench10").originals | {ART: (whole := packed(ART, miniature("artbench10").originals[ART]))[:member_offset(whole, -9)]}, BROKEN),
    "bit turned in a header of a tar": ("artbench10", "train", lambda: miniature("artbench10").originals | {ART: header_turned(packed(ART, miniature("artbench10").originals[ART]), -9)}, BROKEN),
    "bit turned in a header of a tar in a tar": ("imagenet", "train", lambda: with_member("imagenet", "ILSVRC2012_img_train.tar", "n01440764.tar", header_turned(packed(".tar", miniature("imagenet").originals["ILSVRC2012_img_train.tar"]["n01440764.tar"]), 2)), BROKEN),
    "another file of that name": ("cifar10", "train", lambda: {"cifar-10-python.tar.gz": b"<html>404 not found</html>" * 99}, BROKEN),
    "image cut": ("artbench10", "train", lambda: with_member("artbench10", ART, "artbench-10-imagefolder-split/train/baroque/cut.jpg", half(picture("cut", (256, 256)))), "baroque/cut.jpg .*is no readable image"),
    "image is text": ("food101", "test", lambda: with_member("food101", "food-101.tar.gz", "food-101/images/apple_pie/134.jpg", b"<html>"), "apple_pie/134 .*is no readable image"),
    "image empty": ("celeba64", "valid", lambda: with_member("celeba64", "img_align_celeba.zip", "img_align_celeba/000004.jpg", b""), "000004.jpg .*is no readable image"),
    "image of another size": ("celeba64", "valid", lambda: with_member("celeba64", "img_align_celeba.zip", "img_align_celeba/000004.jpg", picture("small", (64, 64))), "000004.jpg: aligned CelebA images are 178x218, got 64x64"),
    "listed image missing": ("sun397", "train", lambda: with_member("sun397", "SUN397.tar.gz", None, None, drop="c/church/outdoor/sun_bzs"), "lacks 1 of the 8 images listed for this split, the first: /c/church/outdoor/sun_bzs"),
    "attributes missing": ("celeba64", "train", lambda: miniature("celeba64").originals | {"list_attr_celeba.txt": half(miniature("celeba64").originals["list_attr_celeba.txt"])}, "no complete line for [34] images"),
    "class without images": ("artbench10", "test", lambda: with_member("artbench10", ART, None, None, drop="test/ukiyo_e"), "no image of 1 of 10 classes, the first: ukiyo_e"),
    "synset without images": ("imagenet", "train", lambda: with_member("imagenet", "ILSVRC2012_img_train.tar", "n02096294.tar", {"readme.txt": b"none"}), "no image of 1 of 4 classes, the first: n02096294"),
    "no image at all": ("artbench10", "test", lambda: miniature("artbench10").originals | {ART: {"artbench-10-imagefolder-split/README": b""}}, "artbench10-test.* no image"),
    "image twice": ("artbench10", "test", lambda: with_member("artbench10", ART, "test/baroque/édouard-manet_test-1-1906.jpg", picture("twice")), "1 images come twice, the first: baroque/édouard"),
    "tar points outside": ("artbench10", "train", lambda: with_member("artbench10", ART, "../../../outside", b"written"), "'../../../outside', which points outside of it"),
    "tar points to the root": ("cub200", "train", lambda: with_member("cub200", "CUB_200_2011.tgz", "/outside", b"written"), "'/outside', which points outside of it"),
    "zip points outside": ("celeba64", "train", lambda: with_member("celeba64", "img_align_celeba.zip", "img_align_celeba/../../../../outside", b"written"), "outside', which points outside of it"),
    "tar with a symbolic link": ("artbench10", "train", lambda: with_member("artbench10", ART, "train/baroque/link.jpg", link("train/baroque/link.jpg", "../../../../outside")), "link.jpg', a link or device"),
    "tgz with a hard link": ("stanford_cars", "train", lambda: with_member("stanford_cars", "cars_train.tgz", "cars_train/00099.jpg", link("cars_train/00099.jpg", "outside", tarfile.LNKTYPE)), "00099.jpg', a link or device"),
    "tar with a pipe": ("imagenet", "val", lambda: with_member("imagenet", "ILSVRC2012_img_val.tar", "ILSVRC2012_val_00000099.JPEG", link("ILSVRC2012_val_00000099.JPEG", "", tarfile.FIFOTYPE)), "a link or device"),
    "zip bomb": ("celeba64", "train", lambda: with_member("celeba64", "img_align_celeba.zip", "img_align_celeba/000001.jpg", bytes(8 << 20)), "holds 8388608 bytes packed into .*a zip bomb"),
    "tar.gz bomb": ("food101", "train", lambda: with_member("food101", "food-101.tar.gz", "food-101/images/apple_pie/zzz.jpg", bytes(290 << 20)), "holds 304087040 bytes up to .*a zip bomb"),
    "picture of too many pixels": ("artbench10", "train", lambda: with_member("artbench10", ART, "train/baroque/big.png", enormous()), "big.png would take too much memory"),
    "pickle cut": ("cifar10", "train", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}data_batch_3", half(miniature("cifar10").originals["cifar-10-python.tar.gz"][f"{BATCHES}data_batch_3"])), "data_batch_3 is not read"),
    "batch missing": ("cifar10", "train", lambda: with_member("cifar10", "cifar-10-python.tar.gz", None, None, drop="data_batch_3"), "holds no data_batch_3"),
    "batch of another shape": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle({b"data": np.zeros((4, 1024), np.uint8), b"labels": [0, 1, 2, 3]})), r"test_batch must hold \(N, 3072\) bytes and N labels, got uint8 \(4, 1024\) and 4"),
    "batch of floats": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle({b"data": np.zeros((4, 3072), np.float32), b"labels": [0, 1, 2, 3]})), r"got float32 \(4, 3072\) and 4"),
    "batch with a label too few": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle({b"data": np.zeros((4, 3072), np.uint8), b"labels": [0, 1, 2]})), r"got uint8 \(4, 3072\) and 3"),
    "CSV without a column": ("df20m_mini", "train", lambda: with_member("df20m_mini", "DF20M-metadata.zip", "DF20M-train_metadata_PROD.csv", b"gbifID,image_path,scientificName\n1,a.JPG,Russula\n"), "DF20M-train_metadata_PROD.csv has no column class_id; it has gbifID, image_path, scientificName"),
    "CSV missing": ("df20m_mini", "test", lambda: with_member("df20m_mini", "DF20M-metadata.zip", None, None, drop="train"), "holds no DF20M-train_metadata_PROD.csv"),
    # lists that do not fit each other, or hold less than they should
    "batch without labels": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle({b"data": np.zeros((4, 3072), np.uint8)})), "test_batch"),
    "batch that is a list": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle([1, 2])), "test_batch"),
    "label beyond the classes": ("cifar10", "test", lambda: with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}test_batch", python2_pickle({b"data": np.zeros((12, 3072), np.uint8), b"labels": [*range(10), 10, 3]})), "label"),
    "label 0 where they begin with 1": ("flowers102", "all", lambda: miniature("flowers102").originals | {"imagelabels.mat": mat(labels=np.array([[3, 1, 2, 2, 3, 1, 1, 3, 2, 0, 2, 3, 3, 3, 1]], np.uint8))}, "label"),
    "fewer labels than images": ("flowers102", "all", lambda: miniature("flowers102").originals | {"imagelabels.mat": mat(labels=np.array([[3, 1, 2]], np.uint8))}, "imagelabels.mat"),
    "annotations without a class": ("stanford_cars", "test", lambda: miniature("stanford_cars").originals | {"cars_test_annos_withlabels.mat": miniature("stanford_cars").originals["car_devkit.tgz"]["devkit/cars_test_annos.mat"]}, "cars_test_annos_withlabels.mat"),
    "partition cut": ("celeba64", "train", lambda: miniature("celeba64").originals | {"list_eval_partition.txt": miniature("celeba64").originals["list_eval_partition.txt"][:-3]}, "list_eval_partition.txt"),
    "attributes empty": ("celeba64", "train", lambda: miniature("celeba64").originals | {"list_attr_celeba.txt": b""}, "list_attr_celeba.txt"),
    "folder that is no class": ("sun397", "all", lambda: with_member("sun397", "SUN397.tar.gz", "SUN397/z/zoo/sun_abc.jpg", picture("zoo")), "/z/zoo"),
    "list with another class": ("sun397", "train", lambda: with_member("sun397", "Partitions.zip", "Training_01.txt", b"/z/zoo/sun_abc.jpg\n"), "/z/zoo"),
    "class only in the test table": ("df20m_mini", "test", lambda: with_member("df20m_mini", "DF20M-metadata.zip", "DF20M-public_test_metadata_PROD.csv", b"image_path,class_id,scientificName\na.JPG,999,Russula\n"), "999"),
    "image without a label": ("cub200", "train", lambda: with_member("cub200", "CUB_200_2011.tgz", "CUB_200_2011/image_class_labels.txt", b"1 1\n"), "image_class_labels.txt"),
    "ground truth that is an inner node": ("imagenet", "val", lambda: with_member("imagenet", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"5\n1\n"), "ground_truth|meta.mat"),
    "devkit without ground truth": ("imagenet", "val", lambda: with_member("imagenet", "ILSVRC2012_devkit_t12.tar.gz", None, None, drop="ground_truth"), "holds no data/ILSVRC2012_validation_ground_truth.txt"),
}


@pytest.mark.parametrize("name, split, damaged, said", DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named_and_nothing_is_lost(name, split, damaged, said, tmp_path, data):
    published(data / "downloads" / name, damaged())
    (tmp_path / "outside").write_text("kept")
    before = tree(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=said): prepare(name, split, unverified=True)
    assert tree(tmp_path) == before and not (data / "prepared" / f"{name}-{split}").exists()
    mini = miniature(name)
    published(data / "downloads" / name, mini.originals)  # mended: what was begun does no harm
    prepare(name, split, unverified=True)
    assert_is(name, split, mini)


def test_a_pickle_that_wants_to_run_something_does_not(tmp_path, data):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "outside"),)
    for batch in ("test_batch", "batches.meta"):
        published(data / "downloads/cifar10", with_member("cifar10", "cifar-10-python.tar.gz", f"{BATCHES}{batch}", pickle.dumps({b"data": Evil(), b"label_names": Evil(), b"labels": []}, 2)))
        with pytest.raises(ValueError, match=f"{batch} is not read .*it wants to use "): prepare("cifar10", "test", unverified=True)
        assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name, file, inside", [("flowers102", "imagelabels.mat", None), ("flowers102", "setid.mat", None), ("stanford_cars", "cars_test_annos_withlabels.mat", None),
                                                ("stanford_cars", "car_devkit.tgz", "devkit/cars_meta.mat"), ("imagenet", "ILSVRC2012_devkit_t12.tar.gz", "ILSVRC2012_devkit_t12/data/meta.mat")])
def test_matlab_files_cut_anywhere_are_named(name, file, inside, data):
    originals, split = miniature(name).originals, dict(flowers102="val", stanford_cars="test", imagenet="val")[name]
    whole = originals[file][inside] if inside else originals[file]
    published(data / "downloads" / name, originals)
    between, start = set(), 128  # after the header, and where each variable begins: what is left is a whole file
    while start < len(whole):
        between.add(start)
        start += 8 + int.from_bytes(whole[start + 4:start + 8], "little")
    for n in sorted({0, 1, 60, 127, 130, 140, len(whole) - 1, *range(150, len(whole), 37)} | between):
        part = originals[file] | {inside: whole[:n]} if inside else whole[:n]
        (data / "downloads" / name / file).write_bytes(packed(file, part))
        with pytest.raises(ValueError, match=PurePosixPath(inside or file).name): prepare(name, split, unverified=True)


def test_unusual_pictures_are_kept_converted_and_counted(data):
    "CMYK, grey, palette, alpha in a PNG called .jpg, EXIF rotation: read as RGB as they lie."
    mini = miniature("artbench10")
    rotated = Image.Exif()
    rotated[274] = 6
    unusual = [dict(mode="CMYK"), dict(mode="L"), dict(mode="L"), dict(form="PNG", mode="P"), dict(form="GIF", mode="P"), dict(form="PNG", mode="RGBA"), dict(form="PNG", mode="1"), dict(exif=rotated), dict(form="BMP")]
    for key, options in zip(sorted(mini.truth["train"]), unusual):
        mini.truth["train"][key] = (mini.truth["train"][key][0], picture(key, (90, 70), **options))
        mini.originals[ART][f"artbench-10-imagefolder-split/train/{key}"] = mini.truth["train"][key][1]
    published(data / "downloads/artbench10", mini.originals)
    prepare("artbench10", "train", unverified=True)
    remarks = assert_is("artbench10", "train", mini)["remarks"]
    assert remarks == {"cmyk": 1, "grey": 3, "palette": 2, "alpha": 1, "exif rotation, not applied": 1}


def test_unusual_faces_become_rgb_pixels(data):
    mini = miniature("celeba64")
    for name, mode in (("000004.jpg", "L"), ("000008.jpg", "CMYK")):
        mini.originals["img_align_celeba.zip"][f"img_align_celeba/{name}"] = face = picture(name, (178, 218), mode=mode)
        mini.truth["valid"][name] = (0, np.array(Image.open(io.BytesIO(face)).convert("RGB").crop((19, 39, 159, 179)).resize((64, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1))
    published(data / "downloads/celeba64", mini.originals)
    prepare("celeba64", "valid", unverified=True)
    assert assert_is("celeba64", "valid", mini)["remarks"] == {"grey": 1, "cmyk": 1}


# ---------------------------------------------------------------- interrupted

SERVER = """
import os, sys, time
import sadm.prepare
checked, sadm.prepare.PIECE = sadm.prepare.checked_image, 16
def slowly(*given):
    time.sleep(0.03)
    return checked(*given)
sadm.prepare.checked_image = slowly
while sys.stdin.readline():  # one process for each line: the imports are made once
    if (child := os.fork()) == 0:
        try:
            sadm.prepare.prepare("artbench10", "train", unverified=True)
            os._exit(0)
        finally: os._exit(1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


def test_killed_five_times_and_called_again_gives_the_same_set(tmp_path, data, monkeypatch):
    "SIGKILL at random moments; until the end there is no set, and only one process at a time makes it."
    mini = artbench10(n=30)
    monkeypatch.setenv("SADM_DATA", str(tmp_path / "whole"))
    published(tmp_path / "whole/downloads/artbench10", mini.originals)
    prepare("artbench10", "train", unverified=True)
    whole = assert_is("artbench10", "train", mini)
    monkeypatch.setenv("SADM_DATA", str(data))
    published(data / "downloads/artbench10", mini.originals)
    server = subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
    partial, moments = data / "prepared/artbench10-train.partial", random.Random(0)
    def begin():
        server.stdin.write("begin\n")
        return int(server.stdout.readline())
    for pieces in sorted(moments.sample(range(1, 15), 5)):
        child, wait_until = begin(), time.time() + 60
        while len(list(partial.glob("*.npz"))) < pieces:
            assert time.time() < wait_until
            time.sleep(0.001)
        time.sleep(moments.random() * 0.03)
        with pytest.raises(RuntimeError, match="is being prepared by another process"): prepare("artbench10", "train", unverified=True)
        os.kill(child, signal.SIGKILL)
        assert int(server.stdout.readline()) == signal.SIGKILL, "it had not come to its end"
        assert len(list(partial.glob("*.npz"))) < 19
        with pytest.raises(FileNotFoundError, match="artbench10-train is not prepared .*begun and not finished"): load_data("artbench10", "train")
        with pytest.raises(FileNotFoundError, match="begun and not finished"): verify("artbench10", "train")
    begin()
    assert server.stdout.readline() == "0\n"
    server.communicate()
    manifest = assert_is("artbench10", "train", mini)
    assert manifest["content"] == whole["content"] and not partial.exists()
    kept = (tmp_path / "whole/prepared/artbench10-train", data / "prepared/artbench10-train")
    for name in ("keys.txt", "labels.npy"): assert (kept[0] / name).read_bytes() == (kept[1] / name).read_bytes()


@pytest.mark.parametrize("name, split", [("cifar10", "test"), ("artbench10", "train")])
def test_interrupted_at_each_step(name, split, tmp_path, data, monkeypatch):
    "Whatever write is the one that fails (before it, or half done): the next call ends with the same set."
    mini, target = miniature(name), data / "prepared" / f"{name}-{split}"
    published(data / "downloads" / name, mini.originals)
    monkeypatch.setattr(sadm.prepare, "PIECE", 7)
    prepare(name, split, unverified=True)
    content = assert_is(name, split, mini)["content"]
    places = [(sadm.prepare, "replace_file"), (sadm.prepare, "write_piece"), (np, "save"), (os, "sync"), (Path, "unlink"), (Path, "rename"), (Path, "replace")]
    steps = 0
    for module, function in places:
        real = getattr(module, function)
        for n in range(4):
            target.rename(tmp_path / f"{function}-{n}")
            calls = []
            def fails(*given, **named):
                calls.append(given)
                if len(calls) == n + 1:
                    if function == "replace_file": given[1](given[0].with_suffix(".writing"))
                    raise KeyboardInterrupt
                return real(*given, **named)
            with monkeypatch.context() as patch:
                patch.setattr(module, function, fails)
                try: prepare(name, split, unverified=True)
                except KeyboardInterrupt:
                    steps += 1
                    assert not target.exists()
            prepare(name, split, unverified=True)
            assert verify(name, split)["content"] == content and sorted(path.name for path in target.iterdir()) == sorted(path.name for path in (tmp_path / "replace_file-0").iterdir())
    assert steps > 12


def test_other_originals_after_an_interruption_begin_anew(data, monkeypatch):
    mini, folder = miniature("artbench10"), data / "downloads/artbench10"
    monkeypatch.setattr(sadm.prepare, "PIECE", 4)
    published(folder, with_member("artbench10", ART, "train/baroque/zzz.jpg", b"no picture"))
    with pytest.raises(ValueError, match="no readable image"): prepare("artbench10", "train", unverified=True)
    assert list(data.glob("prepared/*.partial/shard-*.npz")), "some pieces were complete"
    mini.originals[ART] = dict(reversed(mini.originals[ART].items()))
    published(folder, mini.originals)
    prepare("artbench10", "train", unverified=True)
    assert_is("artbench10", "train", mini)


@pytest.mark.parametrize("name, missing, said", [("ffhq64", "00000/00000.png", "has 4 images .* Mend it and call again"), ("food101", "images/apple_pie/1005649.jpg", "lacks 1 of the 12 images")])
def test_an_image_put_into_a_folder_after_an_interruption_is_read(name, missing, said, data, monkeypatch):
    "It comes before those that are prepared already: none is read twice, none left out."
    mini = miniature(name)
    monkeypatch.setattr(sadm.prepare, "PIECE", 2)
    (unpacked if name == "food101" else published)(data / "downloads" / name, mini.originals)
    path = next((data / "downloads" / name).glob(f"*/{missing}"))
    path = path.rename(data / path.name)
    with pytest.raises((ValueError, FileNotFoundError), match=said): prepare(name, "train")
    path.rename(next((data / "downloads" / name).iterdir()) / missing)
    prepare(name, "train", unverified=True)
    assert_is(name, "train", mini)


# ---------------------------------------------------------------- memory

N_FEW, N_MANY = 200, 2000


def faces(folder, n):
    "CelebA with n training images (one picture under n names)."
    names, face = [f"{i:06d}.jpg" for i in range(1, n + 1)], picture("face", (178, 218))
    published(folder, {"img_align_celeba.zip": {f"img_align_celeba/{name}": face for name in names}, "list_eval_partition.txt": text(f"{name} 0" for name in names),
                       "list_attr_celeba.txt": text([n, " ".join(f"Attribute_{i}" for i in range(40)), *(f"{name} " + " ".join(["-1", " 1"] * 20) for name in names)])})


def anonymous():
    "Memory of this process that is no file's, in bytes."
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))


def growth(images):
    "How much memory a pass over all images took; the batches are dropped."
    images[torch.arange(8)]
    before = anonymous()
    for first in range(0, len(images), 8): images[torch.arange(first, first + 8)]
    return anonymous() - before


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, monkeypatch):
    "Ten times the images: preparing, mapped pixels, packed files. All of them in memory would be 25 MB."
    monkeypatch.setattr(sadm.prepare, "PIECE", 64)
    peak, pixels = {}, {}
    for n in (N_FEW, N_MANY):
        monkeypatch.setenv("SADM_DATA", str(tmp_path / str(n)))
        faces(tmp_path / str(n) / "downloads/celeba64", n)
        tracemalloc.start()
        prepare("celeba64", "train", unverified=True)
        peak[n] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        pixels[n] = load_data("celeba64", "train").images
        assert len(pixels[n]) == n
    assert peak[N_MANY] - peak[N_FEW] < 8e6, "names, attributes and the zip's directory grow, pixels would by 22 MB"
    if not Path("/proc/self/status").exists(): pytest.skip("no /proc: reading is not measured")
    assert growth(pixels[N_MANY]) < 8e6
    files = Mini({ART: {f"train/{style}/{i}.jpg": picture("one", (12, 12)) for i in range(N_MANY // 10) for style in miniature("artbench10").classes}}, None, None)
    published(tmp_path / str(N_MANY) / "downloads/artbench10", files.originals)
    folder = prepare("artbench10", "train", unverified=True)
    packed_images = PackedImages(folder, 64)
    assert len(packed_images) == N_MANY and growth(packed_images) < 8e6


# ---------------------------------------------------------------- the command


def test_sadm_data(data, capsys):
    "`sadm data` shows, prepares, verifies; its exit status is 1 when it could not."
    def sadm_data(*words):
        status, said = main(["data", *words]), capsys.readouterr()
        return status, said.out, said.err
    state = lambda out: {tuple(line.split()[:2]): line.split(maxsplit=2)[2] for line in out.splitlines()[1:]}
    status, out, _ = sadm_data()
    assert status == 0 and str(data) in out.splitlines()[0] and state(out) == dict.fromkeys(CASES, "not prepared")
    status, out, err = sadm_data("no_such_set")
    assert status == 1 and "no data set 'no_such_set'; there are cifar10, celeba64, " in err and "Traceback" not in err and out == ""
    status, out, err = sadm_data("flowers102", "--splits", "half")
    assert status == 1 and "flowers102 has the splits train, val, test, all, got 'half'" in err
    status, out, err = sadm_data("verify", "flowers102")
    assert status == 1 and "flowers102-train is not prepared" in err and "sadm data flowers102" in err
    status, out, err = sadm_data("celeba64")
    assert status == 1 and "cannot be fetched for you. Read the agreement on its page" in err and str(data / "downloads/celeba64") in err

    mini = miniature("flowers102")
    published(data / "downloads/flowers102", mini.originals)
    status, out, err = sadm_data("flowers102")
    assert status == 1 and "published is sha256:2d01ecc8" in err and "--unverified" in err
    status, out, err = sadm_data("flowers102", "--unverified")
    assert status == 0 and [line.split(":")[0] for line in out.splitlines()] == ["flowers102-train", "flowers102-val", "flowers102-test"], "`all` only when asked for"
    manifest = assert_is("flowers102", "val", mini)
    assert f"flowers102-val: 6 images of 3 classes, content {manifest['content'][:16]}" in out and "UNVERIFIED" in out
    assert sadm_data("flowers102", "--unverified", "--splits", "all")[0] == 0
    status, out, err = sadm_data("verify", "flowers102", "--splits", "train,all")
    assert status == 0 and len(out.splitlines()) == 2 and "flowers102-all: 15 images of 3 classes" in out
    status, out, _ = sadm_data()
    assert status == 0 and state(out)["flowers102", "val"] == "6 images, unverified" and state(out)["food101", "train"] == "not prepared"
    labels = data / "prepared/flowers102-val/labels.npy"
    labels.write_bytes(labels.read_bytes()[:-4] + bytes([2, 0, 0, 0]))
    status, out, err = sadm_data("verify", "flowers102")
    assert status == 1 and "flowers102-train: 4 images" in out and "labels.npy has changed" in err and "Remove the folder" in err

    unpacked(data / "elsewhere", miniature("imagenet").originals)
    status, out, _ = sadm_data("imagenet512", "--unverified", "--source", str(data / "elsewhere"))
    assert status == 0 and "imagenet-train: 16 images of 4 classes" in out and "imagenet-val: 9 images of 4 classes" in out
