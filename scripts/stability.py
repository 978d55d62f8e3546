#!/usr/bin/env python3
"""Trains GANs of every loss with its usual penalty for a few updates on several data sets, and finds the ones that collapse.

    scripts/stability.py --data NAME=SPEC ... [--updates 500] [--seeds 3] [--out DIR] [--sheet FILE.png] [--ganvae PATH]

SPEC is what `ganvae train --data` takes: `--data photographs=DIR --data mnist=mnist`. All have the network of --preset small with half of
its channels, images of 32x32, batches of 32 and a constant learning rate; each run is on one thread. A run passes if its losses stay
finite and its last held-out images are no collapse by the run's own watch. Printed: a line for each run, and what failed. With --sheet,
which needs Pillow, sixteen images of each first seed are drawn side by side, a row for each loss. Runs that are complete in --out are not
trained again.
"""
import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMON = (
    "--preset small --image-size 32 --max-width 64 --batch-size 32 --schedule constant --lr 5e-4 --augment none --tune "
    "threads=1,layout=channels-last --sample-every 0 --eval-every 0 --checkpoint-every 0"
).split()
NO_SLOPES = "--r1 0 --r2 0"
# Each with what it is usually trained with.
LOSSES = {
    "non-saturating + R1": "--gan-loss non-saturating --r1 0.2 --r2 0",
    "minimax + R1": "--gan-loss minimax --r1 0.2 --r2 0",
    "least-squares + LeCam": f"--gan-loss least-squares {NO_SLOPES} --lecam 0.3",
    "hinge + spectral norm": f"--gan-loss hinge {NO_SLOPES} --discriminator-norm spectral",
    "wasserstein + gradient penalty": f"--gan-loss wasserstein {NO_SLOPES} --gradient-penalty 10 --penalty-every 1 --d-steps 3",
    "relativistic + R1 + R2": "--gan-loss relativistic --r1 0.1 --r2 0.1",
}


def train(ganvae, flags, data, seed, updates, folder):
    """Trains one run if it is not there; what it said."""
    said = folder.with_suffix(".log")
    if not (folder / "export" / "export.json").is_file():
        command = [ganvae, "train", "gan", *COMMON, *flags.split(), "--data", data, "--seed", seed, "--steps", updates, "--out", folder]
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said.write_text(done.stdout)
        if done.returncode:
            return None, done.stdout.strip().splitlines()[-1]
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    held_out = [row for row in rows if "test_d_accuracy" in row][-1]
    trained = [row for row in rows if "d_accuracy" in row][-1]
    return {**trained, **held_out}, said.read_text()


def draw(sheet, cells, names):
    """Sixteen images of each run: a row for each loss, a column for each data set."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        sys.exit("error: --sheet needs Pillow: pip install Pillow")
    side, gap, left, top = 264, 12, 210, 30
    font = ImageFont.load_default(16)
    picture = Image.new("RGB", (left + len(names) * (side + gap), top + len(LOSSES) * (side + gap)), "white")
    pen = ImageDraw.Draw(picture)
    for i, name in enumerate(names):
        pen.text((left + i * (side + gap) + side / 2, top / 2), name, "black", font, "mm")
    for j, loss in enumerate(LOSSES):
        pen.multiline_text((10, top + j * (side + gap) + side / 2), loss.replace(" + ", "\n+ "), "black", font, "lm")
        for i, name in enumerate(names):
            if file := cells.get((loss, name)):
                grid = Image.open(file).convert("RGB")
                part = grid.crop((0, 0, grid.width // 2, grid.width // 2)).resize((side, side), Image.LANCZOS)
                picture.paste(part, (left + i * (side + gap), top + j * (side + gap)))
    picture.save(sheet)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, action="append", metavar="NAME=SPEC")
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--ganvae", type=Path, default=ROOT / "target" / "release" / "ganvae")
    args = parser.parse_args()
    if wrong := [each for each in args.data if "=" not in each]:
        parser.error(f"--data {wrong[0]}: wanted NAME=SPEC, such as photographs=DIR")
    sets = dict(each.split("=", 1) for each in args.data)
    failed, cells = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        out = args.out or Path(temporary)
        out.mkdir(parents=True, exist_ok=True)
        for loss, flags in LOSSES.items():
            for name, data in sets.items():
                for seed in range(args.seeds):
                    folder = out / f"{loss.replace(' ', '').replace('+', '-')}-{name}-{seed}"
                    values, said = train(args.ganvae, flags, data, seed, args.updates, folder)
                    label = f"{loss:32} {name:12} seed {seed}"
                    if values is None:
                        failed.append(f"{label}  {said}")
                        print(failed[-1], flush=True)
                        continue
                    collapsed = "has collapsed" in said
                    shown = "  ".join(f"{key} {values[key]:7.3f}" for key in ("d_accuracy", "test_d_accuracy", "test_diversity"))
                    print(f"{label}  {shown}{'  COLLAPSED' if collapsed else ''}", flush=True)
                    if collapsed:
                        failed.append(label)
                    if seed == 0:
                        cells[loss, name] = max((folder / "samples").glob("*-*.png"))
        if args.sheet:
            draw(args.sheet, cells, list(sets))
    print(f"{len(failed)} of {len(LOSSES) * len(sets) * args.seeds} failed" + "".join(f"\n  {each}" for each in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
