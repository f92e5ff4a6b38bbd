"""Write the tables of data/README.md from sadm.originals: data sets, and the files to fetch with their checksums."""

import sys
from pathlib import Path

from sadm.originals import ORIGINALS, originals_table

README = Path(__file__).resolve().parent.parent / "data" / "README.md"
BEGIN, END = "<!-- made by tools/data_table.py -->", "<!-- end -->"


OTHERS = [  # what is no Original: in the columns of originals_table
    ("fashion_mnist", "Fashion-MNIST", "train 60,000, test 10,000", 10, "none, 28x28 padded to 32x32", "0.031 GB", "read as it is", "", "md5, torchvision's", "MIT", "https://github.com/zalandoresearch/fashion-mnist", "by torchvision, or Debian's dataset-fashion-mnist"),
    ("fashion16", "Fashion-MNIST, 16x16", "train 10,000, test 5,000", 10, "mean of 2x2", "", "2 MB", "", "below", "MIT", "this repository", "comes with the repository"),
    ("digits8", "UCI digits, 8x8", "train 1,200, test 597", 10, "none", "", "0.1 MB", "", "below", "CC BY 4.0", "this repository", "comes with the repository")]


def row(cells): return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(header, rows): return "\n".join([row(header), row(["---"] * len(header)), *map(row, rows)])


def tables() -> str:
    sets = originals_table().reset_index()
    files = [(f"`{file.name}`", name, f"{file.size:,}" if file.size else "not published", f"`{file.checksum}`" if file.checksum else "none published; the manifest records its SHA-256",
              file.url or "see above") for name, original in ORIGINALS.items() for file in original.files]
    return "\n\n".join([table(sets.columns, [*sets.itertuples(index=False, name=None), *OTHERS]), table(("file", "of", "bytes", "checksum", "from"), files)])


def text(readme: str) -> str:
    before, rest = readme.split(BEGIN)
    return before + BEGIN + "\n" + tables() + "\n" + END + rest.split(END)[1]


if __name__ == "__main__":
    if "--check" in sys.argv: sys.exit(README.read_text() != text(README.read_text()))
    README.write_text(text(README.read_text()))
