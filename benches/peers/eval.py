"""Compares evaluation metrics with their usual implementations on the same pictures: the values and the time.

    make peers-eval
    python eval.py --only inception --pictures 100 --rounds 5

Each section is a function in SECTIONS that takes the options and returns lines of text. Tessera and the other
implementation take turns, one at a time, on two threads each.
"""

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
THREADS = 2
os.environ["OMP_NUM_THREADS"] = os.environ["RAYON_NUM_THREADS"] = str(THREADS)
sys.path.insert(0, str(ROOT / "fixtures" / "eval"))

import pytorch_fid.fid_score  # noqa: E402
import torch  # noqa: E402
from inception import PytorchFid  # noqa: E402

BATCHES = (8, 50)  # pytorch-fid's default is 50; the faster of the two counts


def emoji(count: int) -> list[bytes]:
    """Returns the first `count` pictures of fixtures/emoji, as PNG."""
    found: list[bytes] = []
    for shard in sorted((ROOT / "fixtures" / "emoji").glob("*/*.tar")):
        with tarfile.open(shard) as tar:
            found += [tar.extractfile(member).read() for member in tar if member.name.endswith(".png")]
    if len(found) < count:
        sys.exit(f"fixtures/emoji has {len(found)} pictures; wanted {count}")
    return found[:count]


def two_folders(folder: Path, pictures: list[bytes]) -> list[Path]:
    """Writes the first and the second half of `pictures` to one folder each, and returns the folders."""
    half = len(pictures) // 2
    halves = {folder / "first": pictures[:half], folder / "second": pictures[half : 2 * half]}
    for path, members in halves.items():
        path.mkdir()
        for i, png in enumerate(members):
            (path / f"{i:04}.png").write_bytes(png)
    return list(halves)


def inception(options: argparse.Namespace, folder: Path) -> list[str]:
    """Compares FID with pytorch-fid, with the weights of fixtures/eval: the networks' speed, and the distance."""
    weights = folder / "weights.pth"
    torch.save(PytorchFid.state(), weights)
    network = PytorchFid().network
    folders = two_folders(folder, emoji(options.pictures))
    files = [sorted(path.glob("*.png")) for path in folders]

    def theirs(batch: int) -> tuple[float, list[object]]:
        started = time.perf_counter()
        sets = [
            pytorch_fid.fid_score.calculate_activation_statistics(paths, network, batch, 2048, "cpu", num_workers=0)
            for paths in files
        ]
        return time.perf_counter() - started, sets

    def ours() -> dict[str, float]:
        answer = subprocess.run([*options.ours.split(), weights, *folders], check=True, stdout=subprocess.PIPE)
        return json.load(io.BytesIO(answer.stdout))

    theirs(BATCHES[0])  # the warm-up; Tessera's program does its own
    times: dict[str, list[float]] = {"ours": [], **{f"theirs, {batch} together": [] for batch in BATCHES}}
    for _ in range(options.rounds):
        answer = ours()
        times["ours"].append(answer["seconds"])
        for batch in BATCHES:
            seconds, sets = theirs(batch)
            times[f"theirs, {batch} together"].append(seconds)
    (mean, covariance), (other_mean, other_covariance) = sets
    distance = pytorch_fid.fid_score.calculate_frechet_distance(mean, covariance, other_mean, other_covariance)
    rates = {name: answer["pictures"] / statistics.median(seconds) for name, seconds in times.items()}
    best = max(rate for name, rate in rates.items() if name != "ours")
    lines = [f"{name:24} {rate:8.2f} pictures/s" for name, rate in rates.items()]
    lines.append(f"ours / theirs at its best {rates['ours'] / best:7.2f}")
    lines.append(f"FID: ours {answer['fid']:.6f}, theirs {distance:.6f}, apart {answer['fid'] / distance - 1:+.1e}")
    return lines


def clip(options: argparse.Namespace, folder: Path) -> list[str]:
    """Compares CLIPScore with open_clip: random ViT-B/32 weights, the complete vocabulary, pictures with captions."""
    import open_clip
    from open_clip.tokenizer import default_bpe
    from PIL import Image

    torch.manual_seed(0)
    model, _, prepare = open_clip.create_model_and_transforms("ViT-B-32", pretrained=None, force_quick_gelu=True)
    model.eval()
    for weight in model.state_dict().values():  # rounded to 16 bits for both
        if weight.is_floating_point():
            weight.copy_(weight.half().float())
    weights, converted, pictures = folder / "clip.pt", folder / "clip.safetensors", folder / "pictures"
    torch.save(model.state_dict(), weights)
    pictures.mkdir()
    captions = [each["caption"] for each in json.loads((ROOT / "fixtures/clip/tokens.json").read_text())]
    files = []
    for i, png in enumerate(emoji(min(options.pictures, 160))):
        files.append(pictures / f"{i:04}.png")
        files[-1].write_bytes(png)
        caption = captions[i % len(captions)].strip() or "nothing"
        files[-1].with_suffix(".txt").write_text(" ".join(caption.split()))
    tessera = str(ROOT / "target/release/tessera")
    convert = [tessera, "convert", "clip", weights, "--vocab", default_bpe(), "--gelu", "quick", "--out", converted]
    subprocess.run(convert, check=True, stdout=subprocess.DEVNULL)
    score = [tessera, "eval", "clip-score", pictures, "--rerank", converted, "--precision", "f32", "--json"]
    times: dict[str, list[float]] = {"ours": [], "open_clip": []}
    for _ in range(options.rounds):
        started = time.perf_counter()
        answer = json.loads(subprocess.run(score, check=True, stdout=subprocess.PIPE).stdout)
        times["ours"].append(time.perf_counter() - started)
        started = time.perf_counter()
        cosines = []
        for some in (files[i : i + 32] for i in range(0, len(files), 32)):
            images = model.encode_image(torch.stack([prepare(Image.open(f).convert("RGB")) for f in some]), normalize=True)
            texts = model.encode_text(open_clip.tokenize([f.with_suffix(".txt").read_text() for f in some]), normalize=True)
            cosines += (images * texts).sum(1).tolist()
        times["open_clip"].append(time.perf_counter() - started)
    theirs = statistics.mean(2.5 * max(cosine, 0.0) for cosine in cosines)
    rates = {name: len(files) / statistics.median(seconds) for name, seconds in times.items()}
    lines = [f"{name:24} {rate:8.2f} pairs/s" for name, rate in rates.items()]
    lines.append(f"ours / open_clip {rates['ours'] / rates['open_clip']:15.2f} (ours reads its file each time)")
    lines.append(f"CLIPScore: ours {answer[0]['value']:.6f}, open_clip {theirs:.6f}")
    return lines


SECTIONS: dict[str, Callable[[argparse.Namespace, Path], list[str]]] = {"inception": inception, "clip": clip}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, separated by commas")
    parser.add_argument("--pictures", type=int, default=200, help="number of pictures in both folders together")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours", default=str(ROOT / "target/release/examples/inception"), help="Tessera's program")
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    print(f"torch {torch.__version__}, {THREADS} threads each, {options.pictures} pictures, {options.rounds} rounds")
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory() as folder:
            print(f"\n{name}", *SECTIONS[name](options, Path(folder)), sep="\n")


if __name__ == "__main__":
    main()
