#!/usr/bin/env python3
"""Compares ganvae's training step with PyTorch's on the CPU: short slices in turn, in one run.

Usage (through scripts/bench, which sets things up and builds):
    bench_compare.py [ABCDEFS] [--rounds 5] [--seconds 8] [--epoch] [--check] [--json FILE]
                     [--data DIR] [--ganvae PATH] [--ganvae-args "..."]

PyTorch's side is bench_pytorch.py, whose docstring says what the workloads and the variants `plain`, `tuned` and
`compile` are. ganvae is timed as it is used: `ganvae train` writes metrics.jsonl, and the time between its rows is the
time of the steps between them, data feeding and the reading of losses included. Each slice of ganvae is a new process,
so its first row ends the warm-up, tuning included, and is not counted; nor is a row after the end of an epoch, for its
time holds that epoch's scores and pictures. PyTorch's processes stay and are warmed up once, compilation included.

Each round runs every program once; a ratio compares the two slices of one round, so a machine that slows down between
rounds slows both. Printed: medians over rounds, and the range of the ratios. All use their default number of threads.

Peak memory is each process's own: of ganvae as the kernel gives it at its end, of PyTorch VmHWM after the last slice
(without the C++ compilers and workers that torch.compile starts). The start is from launch to the end of the first
step, of each program's second start, when files are cached. torch.compile's cache is empty at its first start, whose
time stands in brackets; later starts find it filled.

--epoch also runs one epoch of 60,000 images with each program, once in turn: seconds from launch to exit. ganvae's
includes what it always does: digits are drawn, the epoch ends with the score of 10,000 held-out images, pictures,
curves and a checkpoint. PyTorch's only trains; compile finds its cache filled.

The images: ganvae's digits and random ones of that shape for PyTorch, or MNIST for both with --data; random ones of 3x32x32 for both
for workloads E and F.
"""

import argparse
import gzip
import json
import os
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 60000
COLOUR_IMAGES = 9000
RESIDUAL = "gan --preset small --schedule constant --augment none --blocks 0,1 --max-width 128 --lr 1e-3 --ema 0 --penalty-every 1"
# Name, batch size, and ganvae's model and flags.
WORKLOADS = {
    "A": ("article VAE", 128, "vae --preset article"),
    "B": ("article GAN", 128, "gan --preset article"),
    "C": ("conv VAE", 128, "vae --preset conv-vae"),
    "D": ("dcgan", 128, "gan --preset dcgan"),
    "E": ("residual GAN", 64, f"{RESIDUAL} --gan-loss relativistic --r1 1 --r2 1"),
    "F": ("spectral GAN", 64, f"{RESIDUAL} --gan-loss hinge --r1 0 --r2 0 --discriminator-norm spectral"),
    "S": ("small VAE", 20, "vae --preset pytorch-vae --encoder-hidden 200 --decoder-hidden 200 --latent 50"),
}
# For --check: how many times longer a step has to take in the faster tuned variant, and in the plain one.
TARGETS = {"A": (1.05, 1.8), "B": (1.05, 1.8), "C": (1.6, 2.4), "D": (1.0, 1.1), "E": (1.0, 1.3), "F": (1.0, 1.3), "S": (2.5, 3.0)}
PEAK_TARGETS = {"E": 0.6, "F": 0.6}
PEAK_TARGET = 0.55


class Worker:
    """A PyTorch process that times a slice for each command."""

    def __init__(self, command):
        self.process = subprocess.Popen(
            [*command, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def slice(self, seconds):
        self.process.stdin.write(f"run {seconds}\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            sys.exit("error: the PyTorch worker ended; its message is above")
        return json.loads(line)

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def pytorch_commands(workload, data):
    """Command lines of bench_pytorch.py, by the variant's name."""
    variants = {"plain": ["plain"], "tuned": ["tuned"]}
    if workload in "CDEF":
        variants["tuned, channels-last"] = ["tuned", "--channels-last"]
    if workload != "E":
        variants["compile"] = ["compile"]
    script = [sys.executable, str(ROOT / "scripts" / "bench_pytorch.py"), "--workload", workload]
    script += ["--batch", str(WORKLOADS[workload][1])] + (["--data", data] if data else [])
    return {name: [*script, "--variant", *flags] for name, flags in variants.items()}


def train(workload, args, *more):
    """Runs `ganvae train`; returns its rows of metrics, peak MB, seconds to the first row and to the exit."""
    _, batch, flags = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as folder:
        command = [args.ganvae, "train", *flags.split(), "--batch-size", str(batch), "--device", "cpu"]
        command += ["--data", images_of(workload, args), "--out", f"{folder}/run", *more, *shlex.split(args.ganvae_args)]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        first_s, last = None, ""
        for last in process.stderr:
            if first_s is None and last.startswith("step "):
                first_s = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        took_s = time.perf_counter() - started
        if status != 0:
            sys.exit(f"error: {shlex.join(command)} failed: {last.strip()}")
        with open(f"{folder}/run/metrics.jsonl") as file:
            rows = [json.loads(line) for line in file]
    return [row for row in rows if "lr" in row], usage.ru_maxrss / 1024, first_s, took_s


def images_of(workload, args):
    """What ganvae's --data is given."""
    return str(args.colour) if workload in "EF" else args.data or "digits"


def steps_of_epoch(workload):
    """A step of the paired loss takes a batch for each of its two updates."""
    images = COLOUR_IMAGES if workload in "EF" else IMAGES
    return -(-images // (WORKLOADS[workload][1] * (2 if workload == "E" else 1)))


def ganvae_slice(workload, steps, args):
    """Trains at least `steps` steps; returns the median over rows of milliseconds per step, and peak MB."""
    per_epoch = steps_of_epoch(workload)
    every = max(4, min(steps, per_epoch) // 8)
    flags = ["--steps", str(max(steps, 3 * every)), "--log-every", str(every)]
    rows, peak_mb, _, _ = train(workload, args, *flags, "--test-limit", "128", "--checkpoint-every", "0")
    pairs = [(a, b) for a, b in zip(rows, rows[1:]) if b["step"] - a["step"] == every and a["step"] % per_epoch]
    return statistics.median((b["wall_s"] - a["wall_s"]) / every * 1e3 for a, b in pairs), peak_mb


def compare(workload, args):
    """All programs on one workload; returns for each its ms per step by round, peak MB, starts, and epoch."""
    commands = pytorch_commands(workload, None if workload in "EF" else args.data)
    results = {name: {"ms": []} for name in ["ganvae", *commands]}
    # Starts one after another, so that none waits for another's; the first warms the file cache.
    one_step = ["--steps", "1", "--test-limit", "128"]
    results["ganvae"]["starts_s"] = [train(workload, args, *one_step)[2] for _ in range(2)]
    workers = {}
    for name, command in commands.items():
        first = Worker([*command, "--warmup", "0"])
        first_s = first.slice(0)["start_to_first_step_s"]
        first.close()
        workers[name] = Worker(command)
        result = workers[name].slice(0.5)
        results[name]["starts_s"] = [first_s, result["start_to_first_step_s"]]
        results[name]["steps_per_s"] = result["steps_per_s"]
    # A short run, PyTorch's steps of one second, tells how many of ganvae's fill a slice.
    ms, _ = ganvae_slice(workload, int(results["plain"]["steps_per_s"]), args)
    steps = int(args.seconds * 1e3 / ms)
    for _ in range(args.rounds):
        ms, results["ganvae"]["peak_mb"] = ganvae_slice(workload, steps, args)
        results["ganvae"]["ms"].append(ms)
        for name, worker in workers.items():
            result = worker.slice(args.seconds)
            results[name]["ms"].append(result["ms_per_step"])
            results[name]["peak_mb"] = result["peak_rss_mb"]
    for worker in workers.values():
        worker.close()
    if args.epoch:
        results["ganvae"]["epoch_s"] = train(workload, args, "--epochs", "1")[3]
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run([*command, "--epoch"], stdout=subprocess.DEVNULL, check=True)
            results[name]["epoch_s"] = time.perf_counter() - started
    return results


def report(workload, results):
    """Prints rows of a Markdown table and returns them as data."""
    rows = []
    ours = results["ganvae"]
    for name, theirs in results.items():
        ratios = [b / a for a, b in zip(ours["ms"], theirs["ms"])]
        first_s, start_s = theirs["starts_s"]
        row = {
            "workload": workload,
            "program": name if name == "ganvae" else f"PyTorch {name}",
            "ms_per_step": round(statistics.median(theirs["ms"]), 3),
            "steps_per_s": round(1e3 / statistics.median(theirs["ms"]), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "peak_mb": round(theirs["peak_mb"]),
            "peak_ratio": round(ours["peak_mb"] / theirs["peak_mb"], 3),
            "first_start_s": round(first_s, 2),
            "start_s": round(start_s, 2),
        }
        if "epoch_s" in theirs:
            row["epoch_s"] = round(theirs["epoch_s"], 2)
            row["epoch_ratio"] = round(theirs["epoch_s"] / ours["epoch_s"], 3)
        rows.append(row)
        rival = name != "ganvae"
        cells = [
            f"{workload} {WORKLOADS[workload][0]}",
            row["program"],
            f"{row['ms_per_step']:.3g}",
            row["steps_per_s"],
            f"**{row['ratio']:.2f}** ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})" if rival else "",
            row["peak_mb"],
            f"{row['peak_ratio']:.2f}" if rival else "",
            f"{row['start_s']} ({row['first_start_s']})" if name == "compile" else row["start_s"],
        ]
        if "epoch_s" in row:
            cells += [f"{row['epoch_s']:.1f}", f"{row['epoch_ratio']:.2f}" if rival else ""]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    return rows


def check(rows):
    """Prints a line for each target; returns whether all are met."""
    all_met = True

    def judge(met, text):
        nonlocal all_met
        all_met = all_met and met
        print(f"{'met   ' if met else 'MISSED'}  {text}")

    for workload in dict.fromkeys(row["workload"] for row in rows):
        rivals = {
            kind: [r for r in rows if r["workload"] == workload and r["program"].startswith(f"PyTorch {kind}")]
            for kind in ("tuned", "plain", "compile")
        }
        tuned_target, plain_target = TARGETS[workload]
        for kind, target in (("tuned", tuned_target), ("plain", plain_target)):
            ratio = min(row["ratio"] for row in rivals[kind])
            judge(ratio >= target, f"{workload} step against {kind}: {ratio}, wanted {target} or more")
        for row in rivals["compile"]:
            judge(row["ratio"] > 1, f"{workload} step against compile: {row['ratio']}, wanted above 1")
        for row in (r for kind in rivals.values() for r in kind if "epoch_ratio" in r):
            text = f"{workload} epoch against {row['program']}: {row['epoch_ratio']}, wanted above 1"
            judge(row["epoch_ratio"] > 1, text)
        peak = max(row["peak_ratio"] for row in rivals["tuned"])
        wanted = PEAK_TARGETS.get(workload, PEAK_TARGET)
        judge(peak <= wanted, f"{workload} peak memory against tuned: {peak}, wanted {wanted} or less")
    return all_met


def is_mnist(folder):
    path = Path(folder) / "train-images-idx3-ubyte.gz"
    if not path.is_file():
        return False
    with gzip.open(path) as file:
        # IDX of u8 in three dimensions, and their sizes.
        return struct.unpack(">4I", file.read(16)) == (0x803, IMAGES, 28, 28)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("workloads", nargs="?", default="ABCDEFS", help="some of A to F and S (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="slices of each program (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a slice (default 8)")
    parser.add_argument("--epoch", action="store_true", help="also time a whole epoch, launch to exit (minutes each)")
    parser.add_argument("--check", action="store_true", help="compare with the targets; exit code 1 if one is missed")
    parser.add_argument("--data", metavar="DIR", help="MNIST's IDX .gz files, in place of digits and random images")
    parser.add_argument("--ganvae", metavar="PATH", default=str(ROOT / "target/release/ganvae"), help="the binary")
    parser.add_argument("--ganvae-args", metavar="FLAGS", default="", help='more for it: --ganvae-args="--threads 1"')
    parser.add_argument("--json", metavar="FILE", help="also write the rows to this file")
    args = parser.parse_args()
    if not args.workloads or set(args.workloads) - set(WORKLOADS):
        parser.error(f"workloads {args.workloads!r}: wanted letters out of {''.join(WORKLOADS)}")
    if args.rounds < 1:
        parser.error(f"--rounds {args.rounds}: wanted at least 1")
    if not args.seconds > 0:
        parser.error(f"--seconds {args.seconds}: wanted more than 0")
    if not os.access(args.ganvae, os.X_OK) or os.path.isdir(args.ganvae):
        parser.error(f"--ganvae {args.ganvae}: wanted a program (`cargo build --release` makes target/release/ganvae)")
    if args.data and not is_mnist(args.data):
        parser.error(f"--data {args.data}: wanted a folder with a train-images-idx3-ubyte.gz of {IMAGES} images, 28x28")
    args.ganvae = os.path.abspath(args.ganvae)
    return args


def main():
    args = parse_args()
    print("ratio: how many times longer PyTorch's step (or epoch) takes than ganvae's; above 1 ganvae is faster.")
    print("peak ratio: ganvae's peak memory over PyTorch's. In brackets: torch.compile's first start.\n")
    heads = ["workload", "program", "ms/step", "steps/s", "ratio (range)", "peak MB", "peak ratio"]
    heads += ["start to first step s"] + (["epoch s", "epoch ratio"] if args.epoch else [])
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    rows = []
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        args.colour = Path(cache) / "colour.npy"
        # As many held out as ganvae holds out by itself: a tenth.
        colour = np.random.default_rng(0).integers(0, 256, (COLOUR_IMAGES * 10 // 9, 32, 32, 3), dtype=np.uint8)
        np.save(args.colour, colour)
        for workload in args.workloads:
            rows += report(workload, compare(workload, args))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")
    if args.check:
        print()
        sys.exit(not check(rows))


if __name__ == "__main__":
    main()
