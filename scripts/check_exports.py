#!/usr/bin/env python3
"""What PyTorch's users do with exports, done to every module of a folder; exit 1 and one sentence where it fails.

  check_exports.py check DIR...    load, run, convert, train; compare with the outputs that ganvae wrote (DIR/expected.safetensors)
  check_exports.py change DIR...   set every number anew with torch, and save .safetensors and .pt in DIR/changed
  check_exports.py same DIR...     DIR/changed and DIR/back hold the same networks, bit for bit
"""
import copy
import json
import pathlib
import sys

import torch
from safetensors.torch import load_file, save_file

TOLERANCE = 1e-5


def fail(text):
    sys.exit(f"error: {text}")


def networks(folder):
    return json.loads((folder / "export.json").read_text())["networks"]


def tensors(result):
    return list(result) if isinstance(result, tuple) else [result]


def compare(what, got, want, tolerance=TOLERANCE):
    if got.shape != want.shape:
        fail(f"{what} has shape {list(got.shape)}, wanted {list(want.shape)}")
    off = (got.double() - want.double()).abs().max().item() / max(1.0, want.abs().max().item())
    if not off <= tolerance:
        fail(f"{what} is off by {off:.2e}, at most {tolerance:.0e} is rounding")
    return off


def check_torchscript(folder, name, about, expected):
    file = folder / about["files"]["torchscript"]["file"]
    module = torch.jit.load(file)
    extra = {"ganvae.json": ""}
    torch.jit.load(file, _extra_files=extra)
    if json.loads(extra["ganvae.json"])["network"] != name:
        fail(f"{file}: its description is of another network")
    if any(m.training for m in module.modules()):
        fail(f"{file} is not in evaluation mode")

    # Named, trainable parameters in sub-modules; the state_dict is the safetensors file.
    state = module.state_dict()
    stored = load_file(folder / about["files"]["safetensors"]["file"])
    if list(sorted(state)) != list(sorted(stored)):
        fail(f"{file}: its keys {sorted(state)} are not those of the safetensors file, {sorted(stored)}")
    for key, value in state.items():
        if not torch.equal(value, stored[key]) or value.dtype != stored[key].dtype:
            fail(f"{file}: {key} is not that of the safetensors file")
    named = dict(module.named_parameters())
    if not named or not all("." in k and p.requires_grad and p.is_leaf for k, p in named.items()):
        fail(f"{file}: its parameters are not all named and trainable: {sorted(named)}")
    if sum(p.numel() for p in named.values()) != about["parameters"]:
        fail(f"{file}: export.json counts {about['parameters']} parameters")
    if not all(hasattr(dict(module.named_modules())[k.rsplit('.', 1)[0]], k.rsplit(".", 1)[1]) for k in state):
        fail(f"{file}: a parameter is not where its name says")

    # The same outputs, at any batch size.
    worst = 0.0
    names = [o["name"] for o in about["outputs"]]
    inputs = [i["name"] for i in (about["inputs"] if "inputs" in about else [about["input"]])]
    with torch.no_grad():
        for batch in (1, 5, 64):
            xs = [expected[f"{name}.{batch}.{i}"] for i in inputs]
            for out, y in zip(names, tensors(module(*xs)), strict=True):
                worst = max(worst, compare(f"{file}: {out} of {batch}", y, expected[f"{name}.{batch}.{out}"]))
        whole = tensors(module(*xs))
        for batch in (2, 33):
            for out, y, w in zip(names, tensors(module(*(x[:batch] for x in xs))), whole):
                compare(f"{file}: {out} of {batch}", y, w[:batch])
        for out, port, y in zip(names, about["outputs"], whole):
            if port["range"] and not (port["range"][0] <= y.min() and y.max() <= port["range"][1]):
                fail(f"{file}: {out} leaves its range {port['range']}")
            if list(y.shape[1:]) != port["shape"][1:]:
                fail(f"{file}: {out} has shape {list(y.shape)}, export.json says {port['shape']}")

        # Other types.
        # Deep networks of random weights lose a digit of bfloat16's two.
        for dtype, tolerance in ((torch.float64, TOLERANCE), (torch.bfloat16, 0.25), (torch.float16, 0.1)):
            other = torch.jit.load(file).to(dtype)
            if any(v.dtype != dtype for v in other.state_dict().values()):
                fail(f"{file}: .to({dtype}) leaves something behind")
            given = [x.to(dtype) if x.is_floating_point() else x for x in xs]
            for out, y, w in zip(names, tensors(other(*given)), whole):
                if y.dtype != dtype or not y.isfinite().all():
                    fail(f"{file}: {out} in {dtype} is {y.dtype} and {'not ' * (not y.isfinite().all())}finite")
                compare(f"{file}: {out} in {dtype}", y, w, tolerance)

    # Fine-tuning: every parameter gets a gradient, running statistics move in training mode only.
    tuned = torch.jit.load(file)
    before = copy.deepcopy(tuned.state_dict())
    tensors(tuned(*xs))[0].sum().backward()
    if any(k.endswith(("running_mean", "running_var")) and not torch.equal(v, before[k]) for k, v in tuned.state_dict().items()):
        fail(f"{file}: running statistics move in evaluation mode")
    tuned.train()
    tuned.zero_grad()
    sum(y.square().sum() for y in tensors(tuned(*xs))).backward()
    lacking = [k for k, p in tuned.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    if lacking:
        fail(f"{file}: no gradient reaches {lacking}")
    torch.optim.Adam(tuned.parameters(), lr=1e-3).step()
    after = tuned.state_dict()
    still = [k for k in after if torch.equal(after[k], before[k])]
    # A gradient may be exactly 0 behind units that no input wakes, but not that of a whole tensor here.
    if still:
        fail(f"{file}: {still} did not change in an update")
    return worst


def check(folder):
    expected = load_file(folder / "expected.safetensors")
    for name, about in networks(folder).items():
        print(f"{folder.name} {name}: off by {check_torchscript(folder, name, about, expected):.1e} at the most")


def change(folder):
    out = folder / "changed"
    out.mkdir()
    torch.manual_seed(5)
    for name, about in networks(folder).items():
        module = torch.jit.load(folder / about["files"]["torchscript"]["file"])
        with torch.no_grad():
            for key, value in module.state_dict().items():
                value.copy_(torch.rand_like(value) if key.endswith("running_var") else torch.randn_like(value) * 0.1)
        save_file(module.state_dict(), out / f"{name}.safetensors")
        module.save(out / f"{name}.pt")


def same(folder):
    one, other = folder / "changed", folder / "back"
    if len(list(one.glob("*.safetensors"))) != 2:
        fail(f"{one} does not hold two networks")
    for file in sorted(one.glob("*.safetensors")):
        a, b = load_file(file), load_file(other / file.name)
        script = torch.jit.load(other / file.with_suffix(".pt").name).state_dict()
        if not a or sorted(a) != sorted(b) or sorted(a) != sorted(script):
            fail(f"{file.name}: keys {sorted(a)} in one folder, {sorted(b)} in the other")
        for key, value in a.items():
            if not torch.equal(value, b[key]) or not torch.equal(value, script[key]):
                fail(f"{file.name}: {key} came back with other bits")


if __name__ == "__main__":
    commands = {"check": check, "change": change, "same": same}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    for argument in sys.argv[2:]:
        commands[sys.argv[1]](pathlib.Path(argument))
