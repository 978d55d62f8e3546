#!/usr/bin/env python3
"""What `train --score fid` costs at its default interval: whole runs with and without it, in turn.

    scripts/bench_score.py [--rounds 3] [--data digits] [--ganvae PATH]

Each model trains for 500 updates, the default interval, on 64,000 images. The network for features is trained before and comes from the cache. Printed: median
seconds, and the median of the ratios within a round. Run it on a quiet machine.
"""
import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--ganvae", type=Path, default=ROOT / "target" / "release" / "ganvae")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)

        def seconds(model, *more, length=("--epochs", "1")):
            out = work / f"run-{time.monotonic_ns()}"
            # An epoch of 500 updates: as many as lie between two scores.
            command = [args.ganvae, "train", *model.split(), "--data", args.data, "--train-limit", "64000", "--test-limit", "2000",
                       "--batch-size", "128", *length, "--cache", work / "cache", "--device", "cpu", "--tune", "off",
                       "--out", out, *more]
            start = time.perf_counter()
            run = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            if run.returncode:
                sys.exit(f"error: {' '.join(map(str, command))}: {run.stderr.decode()}")
            return time.perf_counter() - start

        seconds("vae", "--score", "fid", length=("--steps", "1"))
        for model in ["vae --preset pytorch-vae", "vae --preset conv-vae", "gan --preset dcgan"]:
            rounds = [(seconds(model), seconds(model, "--score", "fid")) for _ in range(args.rounds)]
            plain, scored = (statistics.median(r[i] for r in rounds) for i in (0, 1))
            ratios = [scored / plain for plain, scored in rounds]
            print(f"{model:26} without {plain:.1f} s, with --score fid {scored:.1f} s: {statistics.median(ratios):.3f} times "
                  f"({min(ratios):.3f} to {max(ratios):.3f})", flush=True)


if __name__ == "__main__":
    main()
