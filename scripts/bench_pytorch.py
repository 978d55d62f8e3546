#!/usr/bin/env python3
"""Times PyTorch's own training step on the workloads that ganvae is compared on (CPU).

Usage:
    bench_pytorch.py --workload A --variant tuned --seconds 10       prints one JSON line
    bench_pytorch.py --workload A --variant plain --serve            a worker: one JSON line for each line `run SECONDS`
    bench_pytorch.py --workload A --variant plain --epoch            trains one epoch and ends; to be timed from outside

Workloads, at 28x28, the first four at the sizes of ganvae's presets, with batches of 128 images:
    A  article    VAE 784-512-(100,100), 100-512-12544-784, Adam 1e-4
    B  article    GAN 100-256-512-12544-784 against 784-512-256-1, Adam 1e-4
    C  conv-vae   VAE of 4x4/2 convolutions 1-32-64 and a 7x7 one to 256, latent 64, its mirror, Adam 1e-3
    D  dcgan      GAN of the same kind, 100-256-128-1 against 1-64-128-1 with BatchNorm, Adam 2e-4 (0.5, 0.999)
    S  small VAE  VAE 784-200-(50,50), 50-200-784, Adam 1e-3, with batches of 20 images
and on images of 3x32x32, with batches of 64 for each update of a network:
    E  residual   GAN of residual blocks of 3x3 convolutions: 32, 64, 128 channels at 16x16, 8x8 and 4x4, 16 at 32x32 without blocks;
                  relativistic loss, R1 and R2 in every update, Adam 1e-3 (0, 0.99)
    F  spectral   the same networks, hinge loss, spectral normalisation in the discriminator

Variants:
    plain    as usually written: Adam with its defaults, one D pass for real and one for generated images, the
             generator's loss.backward() through all of D, values read with .item() each step
    tuned    fused Adam, gradients of the player being updated only, one D pass where D has no BatchNorm, in-place
             activations, no .item(), and malloc told to keep large blocks (by starting itself again with two variables
             set)
    compile  the tuned step with the losses, networks included, and the generator's pass through torch.compile, forward
             and backward: static shapes, no graph breaks, and inductor's cpp_wrapper, which was the fastest way here
             (S gains most; mode max-autotune-no-cudagraphs and channels-last brought nothing more). All is compiled in
             the first step, before any timing; an epoch's last, partial batch takes the same functions uncompiled, so
             nothing is compiled twice (that would be an error). It has no second derivatives, so E has no such variant.
All keep the 7x7 convolutions that a PyTorch user writes (ganvae has linear layers there) and the last, partial batch of
an epoch. --channels-last puts networks and images in that layout; which is faster depends on machine and workload.

A batch is gathered from images that lie in memory as u8, then divided by 255, as in ganvae. In the output, ms_median,
ms_p10 and ms_p90 are of single steps; ms_per_step is the median over eighths of the slice of their mean, the measure
that ganvae's rows of metrics give; steps_per_s is over the whole slice, peak_rss_mb is the process's so far (not that
of compilers that it has started), start_to_first_step_s is from the start of the process until it is ready plus its
first step (waiting for the first command is not counted).
"""

import argparse
import gzip
import json
import os
import sys
import time

# glibc gives every block over 32 MB back to the kernel, so large gradients would be page-faulted anew each step.
KEEP_LARGE_BLOCKS = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**31 - 1)}


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", required=True, choices="ABCDEFS")
    parser.add_argument("--variant", required=True, choices=["plain", "tuned", "compile"])
    parser.add_argument("--seconds", type=float, default=10.0, help="length of the timed slice (default 10)")
    parser.add_argument("--warmup", type=float, default=3.0, help="untimed seconds before the first slice (default 3)")
    parser.add_argument("--batch", type=int, help="images for each update (default 128; S: 20; E, F: 64)")
    parser.add_argument(
        "--data", default="random", help="u8 [N,28,28] or [N,C,H,W] as .npy, a folder of MNIST's .gz, or `random`"
    )
    parser.add_argument("--threads", type=int, help="of one operation (default: PyTorch's own choice)")
    parser.add_argument("--channels-last", action="store_true", help="that memory layout (workloads C to F)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--serve", action="store_true", help="time a slice for each line `run SECONDS` on stdin")
    mode.add_argument("--epoch", action="store_true", help="train one epoch, then end")
    args = parser.parse_args()
    if args.batch is None:
        args.batch = {"S": 20, "E": 64, "F": 64}.get(args.workload, 128)
    if args.batch < 2:
        parser.error(f"--batch {args.batch}: wanted at least 2")
    if args.variant == "compile" and args.workload == "E":
        parser.error("--variant compile: torch.compile has no second derivatives, which workload E needs")
    if args.channels_last and args.workload not in "CDEF":
        parser.error(f"--channels-last: workload {args.workload} has no convolutions")
    return args


ARGS = parse_args()
if ARGS.variant != "plain" and any(os.environ.get(k) != v for k, v in KEEP_LARGE_BLOCKS.items()):
    # malloc reads its settings when a process starts, so before torch is there; exec keeps the start time.
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_LARGE_BLOCKS})

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


# The images of a workload, [N,C,H,W].
SHAPE = (9000, 3, 32, 32) if ARGS.workload in "EF" else (60000, 1, 28, 28)


def load_images(spec):
    """u8 [N,C,H,W]."""
    if spec == "random":
        return torch.randint(256, SHAPE, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    if os.path.isdir(spec):
        spec = os.path.join(spec, "train-images-idx3-ubyte.gz")
        with gzip.open(spec) as file:
            # IDX: magic number, count, height and width in 16 bytes, then the pixels; in parts, to hold them once.
            array = np.empty(np.frombuffer(file.read(16), ">u4")[1:], np.uint8)
            for part in np.array_split(array, 100):
                file.readinto(part)
    else:
        array = np.load(spec)
    if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.size != len(array) * np.prod(SHAPE[1:]):
        sys.exit(f"--data {spec}: found {array.dtype} {list(array.shape)}, wanted uint8 of {list(SHAPE[1:])} each")
    return torch.from_numpy(array.reshape(-1, *SHAPE[1:]))


def batches(images, size):
    """x [B,C,H,W] in [0,1], epoch after epoch, each in a new order."""
    while True:
        order = torch.randperm(len(images))
        for index in order.split(size):
            x = images.index_select(0, index).to(torch.float32).div_(255)
            yield x.to(memory_format=torch.channels_last) if ARGS.channels_last else x


def dense(*widths, act):
    """Linear layers of these widths, `act()` after each."""
    return [layer for a, b in zip(widths, widths[1:]) for layer in (nn.Linear(a, b), act())]


def conv(a, b, **kw):
    return nn.Conv2d(a, b, 4, stride=2, padding=1, **kw)


def conv_t(a, b, **kw):
    return nn.ConvTranspose2d(a, b, 4, stride=2, padding=1, **kw)


class Vae(nn.Module):
    def __init__(self, trunk, width, latent, decoder):
        super().__init__()
        self.trunk, self.decoder = trunk, decoder
        self.mu, self.logvar = nn.Linear(width, latent), nn.Linear(width, latent)

    def forward(self, x):
        h = self.trunk(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        return self.decoder(z), mu, logvar


def vae(workload, relu):
    if workload == "A":
        trunk = nn.Sequential(nn.Flatten(), *dense(784, 512, act=relu))
        decoder = nn.Sequential(*dense(100, 512, 12544, act=relu), nn.Linear(12544, 784), nn.Unflatten(1, (1, 28, 28)))
        return Vae(trunk, 512, 100, decoder)
    if workload == "S":
        trunk = nn.Sequential(nn.Flatten(), *dense(784, 200, act=relu))
        decoder = nn.Sequential(*dense(50, 200, act=relu), nn.Linear(200, 784), nn.Unflatten(1, (1, 28, 28)))
        return Vae(trunk, 200, 50, decoder)
    trunk = nn.Sequential(conv(1, 32), relu(), conv(32, 64), relu(), nn.Conv2d(64, 256, 7), relu(), nn.Flatten())
    up = [nn.ConvTranspose2d(256, 64, 7), relu(), conv_t(64, 32), relu(), conv_t(32, 1)]
    return Vae(trunk, 256, 64, nn.Sequential(*dense(64, 256, act=relu), nn.Unflatten(1, (256, 1, 1)), *up))


def gan(workload, relu, leaky):
    """Generator, images in [-1,1] as is usual in PyTorch, and discriminator."""
    if workload == "B":
        widths = dense(100, 256, 512, 12544, act=relu)
        generator = nn.Sequential(*widths, nn.Linear(12544, 784), nn.Tanh(), nn.Unflatten(1, (1, 28, 28)))
        return generator, nn.Sequential(
            nn.Flatten(), *dense(784, 512, 256, act=leaky), nn.Linear(256, 1), nn.Flatten(0)
        )
    generator = nn.Sequential(
        *(nn.Unflatten(1, (100, 1, 1)), nn.ConvTranspose2d(100, 256, 7, bias=False), nn.BatchNorm2d(256), relu()),
        *(conv_t(256, 128, bias=False), nn.BatchNorm2d(128), relu(), conv_t(128, 1), nn.Tanh()),
    )
    discriminator = nn.Sequential(
        *(conv(1, 64), leaky(), conv(64, 128, bias=False), nn.BatchNorm2d(128), leaky()),
        *(nn.Conv2d(128, 1, 7), nn.Flatten(0)),
    )
    for module in [*generator.modules(), *discriminator.modules()]:
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(module.weight, 0.0, 0.02)
    return generator, discriminator


class Block(nn.Module):
    """A residual block: (leaky) ReLU, 3x3, (leaky) ReLU, 3x3."""

    def __init__(self, width, slope, tuned):
        super().__init__()
        # The first never in place: x is needed for the sum.
        self.act1, self.act2 = nn.LeakyReLU(slope), nn.LeakyReLU(slope, inplace=tuned)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x):
        return x + self.conv2(self.act2(self.conv1(self.act1(x))))


def residual_gan(tuned, side):
    """Generator, images around [-1,1] of this side without a limit, and discriminator of workloads E and F: 128 channels at 4x4 pixels, half of them at twice
    the side, 16 at the least."""
    up, down = nn.Upsample(scale_factor=2, mode="bilinear"), nn.AvgPool2d(2)
    channels = [max(128 >> i, 16) for i in range((side // 4).bit_length())]
    pairs = list(zip(channels, channels[1:]))
    change = lambda a, b: [nn.Conv2d(a, b, 1, bias=False)] if a != b else []
    generator = [nn.Linear(64, 128 * 16), nn.Unflatten(1, (128, 4, 4))]
    for wide, narrow in pairs:
        generator += [Block(wide, 0.0, tuned), *change(wide, narrow), up]
    discriminator = [nn.Conv2d(3, 16, 3, padding=1)]
    for wide, narrow in reversed(pairs):
        discriminator += [down, *change(narrow, wide), Block(wide, 0.2, tuned)]
    last = [nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(128 * 16, 1), nn.Flatten(0)]
    return (
        nn.Sequential(*generator, nn.ReLU(), nn.Conv2d(16, 3, 3, padding=1)),
        nn.Sequential(*discriminator, *last),
    )


def compiled(function):
    """For variant compile, the function compiled for whole batches; a partial batch takes it as it is."""
    if ARGS.variant != "compile":
        return function
    torch._dynamo.config.error_on_recompile = True
    fast = torch.compile(function, fullgraph=True, dynamic=False, options={"cpp_wrapper": True})
    return lambda x, *more: (fast if len(x) == ARGS.batch else function)(x, *more)


def adam(net, tuned, **kw):
    return torch.optim.Adam(net.parameters(), fused=True if tuned else None, **kw)


def vae_step(workload, tuned):
    """The update as a function of x."""
    net = vae(workload, (lambda: nn.ReLU(inplace=True)) if tuned else nn.ReLU)
    if ARGS.channels_last:
        net.to(memory_format=torch.channels_last)
    optimizer = adam(net, tuned, lr=1e-4 if workload == "A" else 1e-3)

    @compiled
    def losses(x):
        logits, mu, logvar = net(x)
        recon = F.binary_cross_entropy_with_logits(logits, x, reduction="sum") / len(x)
        kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp()) / len(x)
        return recon + kl, recon.detach(), kl.detach()

    def step(x):
        optimizer.zero_grad()
        loss, recon, kl = losses(x)
        loss.backward()
        optimizer.step()
        return loss.detach() if tuned else (loss.item(), recon.item(), kl.item())

    return step


def gan_step(workload, tuned):
    """The update as a function of x: the discriminator, then the generator on the same generated images."""
    relu = (lambda: nn.ReLU(inplace=True)) if tuned else nn.ReLU
    generator, discriminator = gan(workload, relu, lambda: nn.LeakyReLU(0.2, inplace=tuned))
    if ARGS.channels_last:
        generator.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
    hyper = {"lr": 1e-4} if workload == "B" else {"lr": 2e-4, "betas": (0.5, 0.999)}
    adam_g, adam_d = adam(generator, tuned, **hyper), adam(discriminator, tuned, **hyper)
    bce = nn.BCEWithLogitsLoss()

    def plain(x):
        ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
        x = x.mul_(2).sub_(1)
        adam_d.zero_grad()
        real_logits = discriminator(x)
        real_loss = bce(real_logits, ones)
        real_loss.backward()
        fake = generator(torch.randn(len(x), 100))
        fake_logits = discriminator(fake.detach())
        fake_loss = bce(fake_logits, zeros)
        fake_loss.backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = bce(discriminator(fake), ones)
        g_loss.backward()
        adam_g.step()
        return (real_loss + fake_loss).item(), g_loss.item(), real_logits.mean().item(), fake_logits.mean().item()

    def in_one_pass(x, fake):
        return discriminator(torch.cat([x, fake])).split(len(x))

    def in_two_passes(x, fake):
        return discriminator(x), discriminator(fake)

    # With BatchNorm, the statistics of a mixed batch would tell real from generated.
    judge = in_one_pass if workload == "B" else in_two_passes

    @compiled
    def generate(noise):
        return generator(noise)

    @compiled
    def discriminator_loss(x, fake):
        real_logits, fake_logits = judge(x, fake)
        return bce(real_logits, torch.ones(len(x))) + bce(fake_logits, torch.zeros(len(x)))

    @compiled
    def generator_loss(fake):
        return bce(discriminator(fake), torch.ones(len(fake)))

    def frugal(x):
        x = x.mul_(2).sub_(1)
        fake = generate(torch.randn(len(x), 100))
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
        return d_loss.detach(), g_loss.detach()

    return frugal if tuned else plain


def residual_step(workload, tuned, side=32, place=lambda net: net):
    """The update as a function of x: the discriminator, then the generator with noise (and for the paired loss, images) of its own.
    `place` moves a network to its device."""
    generator, discriminator = map(place, residual_gan(tuned, side))
    if workload == "F":
        for layer in discriminator.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                nn.utils.spectral_norm(layer)
    if ARGS.channels_last:
        generator.to(memory_format=torch.channels_last)
        discriminator.to(memory_format=torch.channels_last)
    hyper = {"lr": 1e-3, "betas": (0.0, 0.99)}
    adam_g, adam_d = adam(generator, tuned, **hyper), adam(discriminator, tuned, **hyper)

    def norms(logits, images):
        (slope,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        return slope.square().flatten(1).sum(1).mean()

    def penalised(x, fake):
        """The paired loss with R1 and R2, as in R3GAN's own trainer."""
        x, fake = x.detach().requires_grad_(), fake.detach().requires_grad_()
        real_logits, fake_logits = discriminator(x), discriminator(fake)
        penalty = 0.5 * (norms(real_logits, x) + norms(fake_logits, fake))
        return F.softplus(fake_logits - real_logits).mean() + penalty, real_logits

    def penalised_in_one_pass(x, fake):
        both = torch.cat([x, fake]).detach().requires_grad_()
        logits = discriminator(both)
        real_logits, fake_logits = logits.split(len(x))
        # Both means in one: a batch of each kind.
        return F.softplus(fake_logits - real_logits).mean() + norms(logits, both), real_logits

    @compiled
    def hinge(x, fake):
        real_logits, fake_logits = discriminator(torch.cat([x, fake])).split(len(x))
        return F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean(), real_logits

    @compiled
    def generate(noise):
        return generator(noise)

    @compiled
    def hinge_of_generator(fake):
        return -discriminator(fake).mean()

    def step(x):
        x = x.mul_(2).sub_(1)
        x, own = x.chunk(2) if workload == "E" else (x, x)
        fake = generate(torch.randn(len(x), 64, device=x.device))
        adam_d.zero_grad()
        if workload == "F":
            d_loss, real_logits = hinge(x, fake.detach())
        else:
            d_loss, real_logits = (penalised_in_one_pass if tuned else penalised)(x, fake)
        d_loss.backward()
        adam_d.step()
        adam_g.zero_grad()
        if tuned:
            discriminator.requires_grad_(False)
        if workload == "F":
            g_loss = hinge_of_generator(fake)
        else:
            fake = generate(torch.randn(len(own), 64, device=x.device))
            with torch.set_grad_enabled(not tuned):
                real_logits = discriminator(own)
            g_loss = F.softplus(real_logits - discriminator(fake)).mean()
        g_loss.backward()
        adam_g.step()
        discriminator.requires_grad_(True)
        return (d_loss.detach(), g_loss.detach()) if tuned else (d_loss.item(), g_loss.item())

    return step


def process_age_s():
    """Seconds since this process started: field 22 of its stat counts clock ticks since boot."""
    with open("/proc/self/stat") as stat, open("/proc/uptime") as uptime:
        started = int(stat.read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        return float(uptime.read().split()[0]) - started


def peak_rss_mb():
    # Not getrusage: its maximum is inherited from the process that started this one.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024


def timed(step, data, seconds):
    """Milliseconds of each step until `seconds` are over, at least one, and the seconds that they took in all."""
    times = []
    begin = now = time.perf_counter()
    while not times or now - begin < seconds:
        step(next(data))
        before, now = now, time.perf_counter()
        times.append((now - before) * 1000)
    return times, now - begin


class Worker:
    def __init__(self):
        torch.manual_seed(0)
        if ARGS.threads:
            torch.set_num_threads(ARGS.threads)
        images = load_images(ARGS.data)
        # A step of the paired loss takes images for each of its two updates.
        per_step = ARGS.batch * (2 if ARGS.workload == "E" else 1)
        self.steps_per_epoch = -(-len(images) // per_step)
        self.data = batches(images, per_step)
        step_of = {**dict.fromkeys("ACS", vae_step), **dict.fromkeys("BD", gan_step), **dict.fromkeys("EF", residual_step)}
        self.step = step_of[ARGS.workload](ARGS.workload, ARGS.variant != "plain")
        self.ready_s = process_age_s()
        self.first_s = None

    def epoch(self):
        for _, x in zip(range(self.steps_per_epoch), self.data):
            self.step(x)
        result = {"workload": ARGS.workload, "variant": ARGS.variant, "batch_size": ARGS.batch}
        print(json.dumps(result | {"steps": self.steps_per_epoch, "peak_rss_mb": round(peak_rss_mb(), 1)}))

    def run(self, seconds):
        """One slice; the first is preceded by the warm-up."""
        if self.first_s is None:
            _, self.first_s = timed(self.step, self.data, 0)
            timed(self.step, self.data, ARGS.warmup)
        times, took_s = timed(self.step, self.data, seconds)
        p10, median, p90 = np.percentile(times, [10, 50, 90])
        result = {
            "workload": ARGS.workload,
            "variant": ARGS.variant,
            "batch_size": ARGS.batch,
            "steps": len(times),
            "steps_per_s": round(len(times) / took_s, 3),
            "ms_per_step": round(np.median([part.mean() for part in np.array_split(times, min(8, len(times)))]), 3),
            "ms_median": round(median, 3),
            "ms_p10": round(p10, 3),
            "ms_p90": round(p90, 3),
            "peak_rss_mb": round(peak_rss_mb(), 1),
            "start_to_first_step_s": round(self.ready_s + self.first_s, 2),
        }
        print(json.dumps(result), flush=True)


def main():
    worker = Worker()
    if ARGS.epoch:
        worker.epoch()
        return
    if not ARGS.serve:
        worker.run(ARGS.seconds)
        return
    for line in sys.stdin:
        match line.split():
            case ["run", seconds] if seconds.replace(".", "", 1).isdecimal():
                worker.run(float(seconds))
            case []:
                pass
            case _:
                sys.exit(f"{line.strip()!r} on stdin: wanted `run SECONDS`")


if __name__ == "__main__":
    main()
