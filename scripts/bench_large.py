#!/usr/bin/env python3
"""Step rate on a set four times the memory that the process may have, beside the rate with the set in memory, in turn.

    scripts/bench_large.py [--rounds 5] [--limit-mb 300] [--model "vae --preset conv-vae --batch-size 32"] [--ganvae PATH]

Pictures of 64x64 pixels are made in a temporary folder, as many as fill four times the limit, and decoded once into a cache there.
Then `ganvae bench` runs within a control group that has the limit (needs root, or a folder of control groups that the user owns), and
without it, where all of the set stays in the system's page cache. Printed: medians of steps/s, how much of a step is spent on data,
peak memory, and the median of the ratios within a round. Run it on a quiet machine.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
SIDE = 64


def group(limit):
    for root, file in [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")]:
        folder = Path(root) / f"ganvae-bench-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / file).write_text(str(limit))
            return folder
        except OSError:
            if folder.is_dir():
                folder.rmdir()
    sys.exit("error: no control group that limits memory can be made: run this as root, or where /sys/fs/cgroup may be written")


def make(folder, count):
    rng = np.random.default_rng(1)
    files = []
    for _ in range(500):
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        path = folder / "one.jpg"
        small.resize((SIDE, SIDE), Image.BICUBIC).save(path, quality=90)
        files.append(path.read_bytes())
        path.unlink()
    for i in range(count):
        (folder / f"{i:06}.jpg").write_bytes(files[i % len(files)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit-mb", type=int, default=300)
    parser.add_argument("--model", default="vae --preset conv-vae --batch-size 32")
    parser.add_argument("--ganvae", type=Path, default=ROOT / "target" / "release" / "ganvae")
    args = parser.parse_args()
    limit = args.limit_mb << 20
    limited = group(limit)
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        count = 4 * limit // (3 * SIDE * SIDE) + 200
        (work / "pictures").mkdir()
        make(work / "pictures", count)
        command = [args.ganvae, "bench", *args.model.split(), "--data", work / "pictures", "--holdout", "100", "--cache", work / "cache",
                   "--device", "cpu", "--seconds", "5", "--tune", "off", "--json"]

        def bench(group):
            if group:
                # What an earlier run left in the page cache would not count for this one.
                for file in (work / "cache").iterdir():
                    with open(file) as open_file:
                        os.fsync(open_file.fileno())
                        os.posix_fadvise(open_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            join = (lambda: (group / "cgroup.procs").write_text(str(os.getpid()))) if group else None
            out = subprocess.run(command, preexec_fn=join, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            if out.returncode:
                sys.exit(f"error: ganvae {'under the limit' if group else 'without a limit'} ended with {out.returncode}: "
                         f"{out.stderr.decode()}")
            return json.loads(out.stdout)

        try:
            bench(None)
            size = sum(file.stat().st_size for file in (work / "cache").iterdir())
            print(f"{count} pictures, {size / 1e6:.0f} MB decoded; limit {limit / 1e6:.0f} MB; load {os.getloadavg()[0]:.1f}", flush=True)
            # Each is first in half of the rounds.
            rounds = [[bench(None), bench(limited)] if i % 2 else [bench(limited), bench(None)][::-1] for i in range(args.rounds)]
        finally:
            limited.rmdir()
    for i, name in enumerate(["in memory", "limited"]):
        rate, data, peak = [statistics.median(f(r[i]) for r in rounds) for f in (
            lambda r: r["steps_per_s"], lambda r: r["ms"]["data"] * r["steps_per_s"] / 10, lambda r: r["peak_rss_mb"])]
        print(f"{name:9} {rate:.2f} steps/s, {data:.1f} % of a step on data, peak {peak:.0f} MB")
    ratios = [limited["steps_per_s"] / free["steps_per_s"] for free, limited in rounds]
    print(f"limited / in memory: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
