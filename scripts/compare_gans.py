#!/usr/bin/env python3
"""Compares GANs by their scores after the same time of training, on the same images.

    scripts/compare_gans.py --data DIR [--only preset,augmentation,classes] [--minutes 60] [--seeds 1] [--image-size 32]
                            [--out DIR] [--ganvae PATH]

    preset         the automatic preset beside dcgan: kernel distance, wanted at most 0.5 of dcgan's
    augmentation   the automatic preset beside the same without augmentation: Frechet distance, wanted at most 0.7
    classes        the automatic preset with --conditional beside the same without: Frechet distance, wanted at most 0.85

Each contestant's rate is measured first (`ganvae bench`), which gives the number of its steps: learning-rate schedules need it at the
start. Trainings run one after another. Scores are `ganvae eval`'s, by features of its own, which are the same for all. Printed: scores and
seconds of each run, the ratio of each seed, and their median. With --out, runs are kept there, and one that is complete is not trained
again.
"""
import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AUTO = ["--preset", "auto"]
CONTESTS = {
    "preset": ("kid", 0.5, "auto", "dcgan"),
    "augmentation": ("fid", 0.7, "auto", "auto-plain"),
    "classes": ("fid", 0.85, "auto-classes", "auto"),
}
FLAGS = {
    "auto": AUTO,
    "dcgan": ["--preset", "dcgan"],
    "auto-plain": [*AUTO, "--augment", "none"],
    "auto-classes": [*AUTO, "--conditional"],
}


def run(command):
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(map(str, command))} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--only", default=",".join(CONTESTS))
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--image-size", default="32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--ganvae", type=Path, default=ROOT / "target" / "release" / "ganvae")
    args = parser.parse_args()
    chosen = args.only.split(",")
    if unknown := set(chosen) - set(CONTESTS):
        parser.error(f"--only {args.only}: {', '.join(sorted(unknown))} is none of {', '.join(CONTESTS)}")
    names = sorted({name for key in chosen for name in CONTESTS[key][2:]})
    data = ["--data", args.data, "--image-size", args.image_size]
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        steps = {}
        for name in names:
            rate = json.loads(run([args.ganvae, "bench", "gan", *FLAGS[name], *data, "--seconds", "15", "--json"]))["steps_per_s"]
            steps[name] = max(1, round(rate * 60 * args.minutes))
            print(f"{name}: {rate:.2f} steps/s, {steps[name]} steps", flush=True)
        scores = {}
        for seed in range(args.seeds):
            for name in names:
                folder = out / f"{name}-{seed}"
                started = time.monotonic()
                # Exports are written last.
                if not (folder / "export" / "export.json").is_file():
                    # Pictures and held-out losses at a tenth of the run each, so that they cost no contestant more than another.
                    run([args.ganvae, "train", "gan", *FLAGS[name], *data, "--seed", seed, "--steps", steps[name], "--out", folder,
                         "--sample-every", "0", "--eval-every", "0", "--checkpoint-every", steps[name] // 10 + 1])
                took = time.monotonic() - started
                scores[name, seed] = json.loads(run([args.ganvae, "eval", folder, *data, "--json"]))
                shown = ", ".join(f"{key} {scores[name, seed][key]:.4f}" for key in ("fid", "kid", "recall"))
                print(f"{name}, seed {seed}: {took:.0f} s, {shown}", flush=True)
    met = True
    for key in chosen:
        score, wanted, ours, theirs = CONTESTS[key]
        ratios = [scores[ours, seed][score] / scores[theirs, seed][score] for seed in range(args.seeds)]
        median = statistics.median(ratios)
        met = met and median <= wanted
        each = ", ".join(f"{ratio:.3f}" for ratio in ratios)
        print(f"{'met   ' if median <= wanted else 'MISSED'}  {ours} / {theirs}, {score}: {median:.3f} ({each}), wanted at most {wanted}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
