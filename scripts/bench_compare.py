#!/usr/bin/env python3
"""Compares ganvae's training step with PyTorch's on the CPU: short slices in turn, in one run.

Usage (through scripts/bench, which sets things up): bench_compare.py [ABCD] [--rounds 5] [--seconds 8] [--json FILE]

ganvae is timed as it is used: `ganvae train` writes metrics.jsonl, and the time between its rows is the time of the steps
between them, data feeding and the reading of losses included. PyTorch's side is bench_pytorch.py, whose docstring says
what `plain` and `tuned` are. Each round runs every program once; a ratio compares the two slices of one round, so a
machine that slows down between rounds slows both. Printed: medians over rounds, and their range.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GANVAE = ROOT / "target" / "release" / "ganvae"
WORKLOADS = {
    "A": ("vae", "article"),
    "B": ("gan", "article"),
    "C": ("vae", "conv-vae"),
    "D": ("gan", "dcgan"),
}


class Worker:
    """A PyTorch process that times a slice for each command."""

    def __init__(self, workload, variant, *more):
        command = [sys.executable, str(ROOT / "scripts" / "bench_pytorch.py")]
        command += ["--workload", workload, "--variant", variant, "--serve", *more]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

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


def run_ganvae(workload, steps, log_every):
    """Trains `steps` steps in a folder of its own; returns (ms per step between rows, peak MB, seconds to the first row)."""
    model, preset = WORKLOADS[workload]
    with tempfile.TemporaryDirectory() as folder:
        command = [str(GANVAE), "train", model, "--preset", preset, "--steps", str(steps), "--log-every", str(log_every)]
        command += ["--test-limit", "128", "--device", "cpu", "--out", f"{folder}/run", "--checkpoint-every", "0"]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        first_s = None
        said = []
        for line in process.stderr:
            said.append(line)
            if first_s is None and line.startswith("step "):
                first_s = time.perf_counter() - started
        _, status, usage = os.wait4(process.pid, 0)
        if status != 0:
            sys.exit(f"error: {' '.join(command)} failed: {''.join(said[-1:]).strip()}")
        rows = [json.loads(line) for line in open(f"{folder}/run/metrics.jsonl")]
    rows = [(row["step"], row["wall_s"]) for row in rows if "lr" in row]
    pairs = zip(rows, rows[1:])
    ms = [(t2 - t1) / (s2 - s1) * 1e3 for (s1, t1), (s2, t2) in pairs if s2 > s1]
    return ms, usage.ru_maxrss / 1024, first_s


def compare(workload, rounds, seconds):
    """All programs on one workload; returns a dict of lists, one value a round."""
    variants = {"plain": ["plain"], "tuned": ["tuned"]}
    if workload in "CD":
        variants["tuned, channels-last"] = ["tuned", "--channels-last"]
    times = {name: [] for name in ["ganvae", *variants]}
    peaks, starts, workers = {}, {}, {}
    # Starts one after another, so that none waits for another's. The first run warms the file cache.
    run_ganvae(workload, 1, 1)
    _, _, starts["ganvae"] = run_ganvae(workload, 1, 1)
    for name, variant in variants.items():
        workers[name] = Worker(workload, *variant)
        starts[name] = workers[name].slice(0.5)["start_to_first_step_s"]
    # A short run tells how many steps fill a slice.
    ms, _, _ = run_ganvae(workload, 12, 3)
    steps = max(8, int(seconds * 1e3 / statistics.median(ms)))
    for _ in range(rounds):
        ms, peaks["ganvae"], _ = run_ganvae(workload, steps, max(1, steps // 8))
        times["ganvae"].append(statistics.median(ms))
        for name, worker in workers.items():
            result = worker.slice(seconds)
            times[name].append(result["ms_median"])
            peaks[name] = result["peak_rss_mb"]
    for worker in workers.values():
        worker.close()
    return times, peaks, starts


def report(workload, times, peaks, starts):
    """Prints rows of a Markdown table and returns them as data."""
    rows = []
    for name in times:
        ratios = [theirs / ours for ours, theirs in zip(times["ganvae"], times[name])]
        row = {
            "workload": workload,
            "program": name if name == "ganvae" else f"PyTorch {name}",
            "ms_per_step": round(statistics.median(times[name]), 2),
            "steps_per_s": round(1e3 / statistics.median(times[name]), 2),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_min": round(min(ratios), 3),
            "ratio_max": round(max(ratios), 3),
            "peak_mb": round(peaks[name]),
            "start_s": round(starts[name], 2),
        }
        rows.append(row)
        spread = "" if name == "ganvae" else f"**{row['ratio']:.2f}** ({row['ratio_min']:.2f} to {row['ratio_max']:.2f})"
        print(
            f"| {workload} {WORKLOADS[workload][1]} {WORKLOADS[workload][0]} | {row['program']} | {row['ms_per_step']} "
            f"| {row['steps_per_s']} | {spread} | {row['peak_mb']} | {row['start_s']} |",
            flush=True,
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workloads", nargs="?", default="ABCD", help="some of A, B, C, D (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="slices of each program (default 5)")
    parser.add_argument("--seconds", type=float, default=8.0, help="length of a slice (default 8)")
    parser.add_argument("--json", help="also write the rows to this file")
    args = parser.parse_args()
    if not args.workloads or set(args.workloads) - set(WORKLOADS):
        parser.error(f"workloads {args.workloads!r}: wanted letters out of ABCD")
    print("ratio: how many times longer PyTorch's step takes than ganvae's; above 1 ganvae is faster.\n")
    print("| workload | program | ms/step | steps/s | ratio (range) | peak MB | start to first step s |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for workload in args.workloads:
        rows += report(workload, *compare(workload, args.rounds, args.seconds))
    if args.json:
        Path(args.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
