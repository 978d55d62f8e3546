#!/usr/bin/env python3
"""Times PyTorch's own training step on a device, for scripts/gpu_check; one JSON object on stdout.

The networks of workloads A to D and S are those of bench_pytorch.py; W is its DCGAN for 64x64 images of three channels, of base
width 64; E64 and E256 are its residual GAN E for images of that side (a batch is half for each network, and there is no compiled
variant: torch.compile has no second derivatives). The variants are those that gpu_check names: plain, tuned, compile, graphs. Images lie as bytes on the device, and a
batch is gathered there and divided by 255, as in ganvae. A compiled variant compiles the losses of whole batches; the update is
the fused optimizer's.
"""

import argparse
import contextlib
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True, choices=[*"ABCDSW", "E64", "E256"])
    parser.add_argument("--variant", required=True, choices=["plain", "tuned", "compile", "graphs"])
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--precision", required=True, choices=["fp32", "tf32", "bf16"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--quick", action="store_true", help="small networks, to try the path")
    return parser.parse_args()


ARGS = parse_args()
# Its own command line is read when it is loaded; only its networks are used.
SIDE = int(ARGS.workload[1:] or 0)
OWN = {"W": "D", "E64": "E", "E256": "E"}
sys.argv = ["bench_pytorch.py", "--workload", OWN.get(ARGS.workload, ARGS.workload), "--variant", "plain"]
import bench_pytorch as nets  # noqa: E402

CUDA = ARGS.device == "cuda"
TUNED = ARGS.variant != "plain"
CONV = ARGS.workload[0] in "CDWE"


def autocast():
    return torch.autocast(ARGS.device, torch.bfloat16) if ARGS.precision == "bf16" else contextlib.nullcontext()


def compiled(function):
    """The function as the variant runs it."""
    if ARGS.variant == "compile":
        return torch.compile(function)
    return torch.compile(function, mode="reduce-overhead") if ARGS.variant == "graphs" else function


def adam(net, **hyper):
    return torch.optim.Adam(net.parameters(), fused=True if TUNED else None, **hyper)


def place(net):
    net.to(ARGS.device)
    if CONV and TUNED:
        net.to(memory_format=torch.channels_last)
    return net


def wide_gan(relu, leaky):
    """DCGAN for 64x64x3 (Radford et al. 2016, arXiv 1511.06434): 4x4/2 convolutions, the first of `width` channels."""
    width = 8 if ARGS.quick else 64
    down, up = [nets.conv(3, width), leaky()], []
    for k in (1, 2, 4):
        down += [nets.conv(width * k, width * 2 * k, bias=False), nn.BatchNorm2d(width * 2 * k), leaky()]
    down += [nn.Conv2d(width * 8, 1, 4), nn.Flatten(0)]
    up += [nn.Unflatten(1, (100, 1, 1)), nn.ConvTranspose2d(100, width * 16, 4, bias=False)]
    up += [nn.BatchNorm2d(width * 16), relu()]
    for k in (16, 8, 4):
        up += [nets.conv_t(width * k, width * k // 2, bias=False), nn.BatchNorm2d(width * k // 2), relu()]
    up += [nets.conv_t(width * 2, 3), nn.Tanh()]
    generator, discriminator = nn.Sequential(*up), nn.Sequential(*down)
    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return generator, discriminator


def vae_step():
    net = place(nets.vae(ARGS.workload, (lambda: nn.ReLU(inplace=True)) if TUNED else nn.ReLU))
    optimizer = adam(net, lr=1e-4 if ARGS.workload == "A" else 1e-3)

    @compiled
    def losses(x):
        with autocast():
            logits, mu, logvar = net(x)
        logits, mu, logvar = logits.float(), mu.float(), logvar.float()
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / len(x)
        return recon + kl, recon.detach(), kl.detach()

    def step(x):
        optimizer.zero_grad()
        loss, recon, kl = losses(x)
        loss.backward()
        optimizer.step()
        return None if TUNED else (loss.item(), recon.item(), kl.item())

    return step


def gan_step():
    relu = (lambda: nn.ReLU(inplace=True)) if TUNED else nn.ReLU
    make = (lambda *layers: wide_gan(*layers)) if ARGS.workload == "W" else (lambda *layers: nets.gan(ARGS.workload, *layers))
    generator, discriminator = map(place, make(relu, lambda: nn.LeakyReLU(0.2, inplace=TUNED)))
    hyper = {"lr": 1e-4} if ARGS.workload == "B" else {"lr": 2e-4, "betas": (0.5, 0.999)}
    adam_g, adam_d = adam(generator, **hyper), adam(discriminator, **hyper)
    bce = nn.BCEWithLogitsLoss()

    def noise(x):
        return torch.randn(len(x), 100, device=x.device)

    def judged(x):
        with autocast():
            return discriminator(x).float()

    def plain(x):
        ones, zeros = torch.ones(len(x), device=x.device), torch.zeros(len(x), device=x.device)
        x = x.mul(2).sub(1)
        adam_d.zero_grad()
        real_logits = judged(x)
        real_loss = bce(real_logits, ones)
        real_loss.backward()
        with autocast():
            fake = generator(noise(x)).float()
        fake_logits = judged(fake.detach())
        fake_loss = bce(fake_logits, zeros)
        fake_loss.backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = bce(judged(fake), ones)
        g_loss.backward()
        adam_g.step()
        return (real_loss + fake_loss).item(), g_loss.item(), real_logits.mean().item(), fake_logits.mean().item()

    def both(x, fake):
        # With BatchNorm, the statistics of a mixed batch would tell real from generated.
        return judged(torch.cat([x, fake])).split(len(x)) if ARGS.workload == "B" else (judged(x), judged(fake))

    @compiled
    def generate(z):
        with autocast():
            return generator(z).float()

    @compiled
    def discriminator_loss(x, fake):
        real_logits, fake_logits = both(x, fake)
        return bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))

    @compiled
    def generator_loss(fake):
        logits = judged(fake)
        return bce(logits, torch.ones_like(logits))

    def frugal(x):
        if ARGS.variant == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        x = x.mul(2).sub(1)
        fake = generate(noise(x))
        d_loss = discriminator_loss(x, fake.detach())
        adam_d.zero_grad()
        d_loss.backward()
        adam_d.step()
        # Only the generator's gradients are wanted now.
        discriminator.requires_grad_(False)
        g_loss = generator_loss(fake)
        adam_g.zero_grad()
        g_loss.backward()
        adam_g.step()
        discriminator.requires_grad_(True)

    return frugal if TUNED else plain


def batches():
    """x [B,C,H,W] in [0,1] out of bytes on the device, whole batches, in a new order each epoch."""
    side = 64 if ARGS.workload == "W" else SIDE
    shape = (3, side, side) if side else (1, 28, 28)
    count = max(4 * ARGS.batch, 64 if ARGS.quick else 2048 if ARGS.workload == "W" else 60000 if not side else 0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8).to(ARGS.device)
    while True:
        order = torch.randperm(count, device=ARGS.device)
        for index in order.split(ARGS.batch):
            if len(index) == ARGS.batch:
                x = images.index_select(0, index).to(torch.float32).div_(255)
                yield x.contiguous(memory_format=torch.channels_last) if CONV and TUNED else x


def wait():
    if CUDA:
        torch.cuda.synchronize()


def timed_on_gpu(step, data, each):
    """Milliseconds of a step in slices of `each` steps; the host is a few slices ahead, as it is in training."""
    marks, ms = [torch.cuda.Event(enable_timing=True)], []
    marks[0].record()
    while not ms or sum(ms) * each < ARGS.seconds * 1e3:
        for _ in range(each):
            step(next(data))
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()
        if len(marks) > 8:
            marks[1].synchronize()
            ms.append(marks[0].elapsed_time(marks[1]) / each)
            del marks[0]
    return ms


def timed_on_cpu(step, data):
    ms, began = [], time.perf_counter()
    while not ms or time.perf_counter() - began < ARGS.seconds:
        before = time.perf_counter()
        step(next(data))
        ms.append((time.perf_counter() - before) * 1e3)
    return ms


def main():
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = ARGS.precision != "fp32"
    # As usually written: no benchmark of algorithms.
    torch.backends.cudnn.benchmark = TUNED
    if SIDE:
        step = nets.residual_step("E", TUNED, SIDE, place)
    else:
        step = vae_step() if ARGS.workload in "ACS" else gan_step()
    data = batches()
    for _ in range(3 if ARGS.quick else 12):
        step(next(data))
    wait()
    began, steps = time.perf_counter(), 0
    while steps == 0 or time.perf_counter() - began < min(0.5, ARGS.seconds):
        step(next(data))
        steps += 1
    wait()
    each = max(1, round(2e-3 * steps / (time.perf_counter() - began)))
    ms = sorted(timed_on_gpu(step, data, each) if CUDA else timed_on_cpu(step, data))
    memory = round(torch.cuda.max_memory_reserved() / 1e6) if CUDA else None
    print(json.dumps({"ms": ms[len(ms) // 2], "p90": ms[len(ms) * 9 // 10], "gpu_mb": memory}))


if __name__ == "__main__":
    main()
