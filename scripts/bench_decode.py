#!/usr/bin/env python3
"""Times the first read of a folder of pictures: ganvae beside two ways to do it in Python, in turn, in one run.

    scripts/bench_decode.py [--rounds 5] [--size 64] [--data DIR] [--ganvae PATH] [--check]

*ganvae*: `ganvae data FOLDER --image-size SIZE` with an empty cache, from launch to exit, less what `ganvae --version` takes beside
it (loading libtorch, about 0.2 s; Python's `import torch` takes longer). *loader*: what torchvision's
ImageFolder with Resize, CenterCrop and ToTensor does (open, convert, scale the shorter side with an antialiased bilinear filter,
cut, to float), in a DataLoader of two workers. *pool*: a pool of two processes; draft mode (JPEG files are decoded at a part of
their size), Lanczos, bytes. Python's times begin after its imports as well.

The pictures: photographs of 4000x3000 and of 500x375 made here (smooth noise of all scales, discs with sharp edges, and the noise
of a sensor), and the small PNG files of DIR/emoji64 (default ../shared/data), or made ones where these are absent. Printed:
medians of the milliseconds per picture, and how many times as fast as the better of the others ganvae is, by the medians of the
ratios in one round. --check fails below 1.5. Run it on a quiet machine: all three use two cores.
"""
import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
TARGET = 1.5


def photograph(rng, h, w):
    out = np.zeros((h, w, 3), np.float32)
    side = 2
    while side < max(h, w):
        small = rng.normal(size=(min(side, h), min(side, w), 3)).astype(np.float32)
        small = small.mean(2, keepdims=True) * 1.5 + small * 0.5
        layer = [np.asarray(Image.fromarray(small[..., c]).resize((w, h), Image.BICUBIC)) for c in range(3)]
        out += 45 / side**0.6 * np.stack(layer, 2)
        side *= 2
    y, x = np.mgrid[:h, :w]
    for _ in range(12):
        cy, cx, r = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(0.02, 0.15) * max(h, w)
        out[(y - cy) ** 2 + (x - cx) ** 2 < r * r] += rng.uniform(-80, 80, 3).astype(np.float32)
    out += rng.normal(0, 4, out.shape).astype(np.float32)
    return Image.fromarray((out + 128).clip(0, 255).astype(np.uint8))


def make(folder, data):
    rng = np.random.default_rng(1)
    for name, count, (h, w) in [("large", 30, (3000, 4000)), ("500x375", 1000, (375, 500))]:
        (folder / name).mkdir()
        # A few different ones; their copies decode as slowly.
        different = [photograph(rng, h, w) for _ in range(3 if name == "large" else 25)]
        for i in range(count):
            different[i % len(different)].save(folder / name / f"{i:04}.jpg", quality=88 + i % 5)
    (folder / "small").mkdir()
    small = sorted(data.glob("emoji64/*/*.png"))
    for i, path in enumerate(small):
        (folder / "small" / f"{i:04}.png").write_bytes(path.read_bytes())
    if not small:
        print(f"no {data}/emoji64: small PNG files are made", file=sys.stderr)
        for i in range(2000):
            photograph(rng, 64, 64).save(folder / "small" / f"{i:04}.png")


class Pictures(torch.utils.data.Dataset):
    def __init__(self, paths, size):
        self.paths, self.size = paths, size

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with open(self.paths[i], "rb") as file:
            picture = Image.open(file).convert("RGB")
        w, h = picture.size
        scale = self.size / min(w, h)
        w, h = (self.size, int(h * scale)) if w < h else (int(w * scale), self.size)
        picture = picture.resize((w, h), Image.BILINEAR)
        left, top = (w - self.size) // 2, (h - self.size) // 2
        picture = picture.crop((left, top, left + self.size, top + self.size))
        return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div(255)


def loader(paths, size):
    for batch in torch.utils.data.DataLoader(Pictures(paths, size), batch_size=64, num_workers=2):
        assert batch.shape[1:] == (3, size, size)


def drafted(job):
    path, size = job
    with Image.open(path) as picture:
        picture.draft("RGB", (size, size))
        picture = picture.convert("RGB")
        w, h = picture.size
        side = min(w, h)
        left, top = (w - side) / 2, (h - side) / 2
        box = (left, top, left + side, top + side)
        return np.asarray(picture.resize((size, size), Image.LANCZOS, box)).tobytes()


def pool(paths, size):
    with multiprocessing.Pool(2) as workers:
        for data in workers.imap(drafted, [(path, size) for path in paths], chunksize=8 if len(paths) > 100 else 1):
            assert len(data) == 3 * size * size


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--ganvae", type=Path, default=ROOT / "target" / "release" / "ganvae")
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    failed = False
    # Pillow's remarks on palettes.
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        make(work, args.data)
        print(f"load of the machine: {os.getloadavg()[0]:.1f}, cores: {os.cpu_count()}")
        for name in ["large", "500x375", "small"]:
            paths = sorted((work / name).iterdir())

            def ganvae():
                cache = tempfile.mkdtemp(dir=work)
                env = {**os.environ, "XDG_CACHE_HOME": cache, "GANVAE_DATA": cache}
                command = [args.ganvae, "data", work / name, "--image-size", str(args.size)]
                subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            def start():
                subprocess.run([args.ganvae, "--version"], check=True, stdout=subprocess.DEVNULL)

            programs = {"start": start, "ganvae": ganvae, "loader": lambda: loader(paths, args.size), "pool": lambda: pool(paths, args.size)}
            times = {program: [] for program in programs}
            for _ in range(args.rounds):
                for program, run in programs.items():
                    begin = time.perf_counter()
                    run()
                    times[program].append((time.perf_counter() - begin) * 1e3 / len(paths))
            times["ganvae"] = [all - start for all, start in zip(times["ganvae"], times.pop("start"))]
            medians = ", ".join(f"{program} {statistics.median(all):.2f}" for program, all in times.items())
            ratios = [min(a, b) / own for own, a, b in zip(times["ganvae"], times["loader"], times["pool"])]
            ratio = statistics.median(ratios)
            failed |= ratio < TARGET
            print(f"{name:8} {len(paths)} pictures, ms each: {medians}; ganvae is {ratio:.2f} times as fast "
                  f"({min(ratios):.2f} to {max(ratios):.2f})", flush=True)
    return int(failed and args.check)


if __name__ == "__main__":
    sys.exit(main())
