"""Trains the DCGAN of bench_pytorch.py on MNIST by PyTorch's own loop, and writes samples of it; for scripts/reproduce.

    dcgan_pytorch.py --data DIR --epochs N --seed S --samples COUNT --out FILE.npy

DIR holds MNIST's IDX files; FILE.npy gets bytes [COUNT,28,28]. The loop is that of PyTorch's DCGAN example: batches of 128, the
discriminator on real, then on generated images, then the generator on the same ones; Adam 2e-4, 0.5; no moving average.
"""
import argparse
import sys

import numpy as np
import torch
from torch import nn

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--data", required=True)
parser.add_argument("--epochs", type=int, required=True)
parser.add_argument("--seed", type=int, required=True)
parser.add_argument("--samples", type=int, required=True)
parser.add_argument("--out", required=True)
args = parser.parse_args()
# It reads its own command line when it is loaded; only its networks and its reader are used.
sys.argv = ["bench_pytorch.py", "--workload", "D", "--variant", "plain"]
import bench_pytorch as nets  # noqa: E402

torch.manual_seed(args.seed)
images = nets.load_images(args.data)
generator, discriminator = nets.gan("D", nn.ReLU, lambda: nn.LeakyReLU(0.2))
# The biases of the first and last layers, which the example's networks lack, start from 0 as in ganvae: PyTorch's own start, uniform up
# to 0.25, gave a Frechet distance of 25.4 after one epoch in place of 27.2 (means of three seeds), so it is another network in effect.
for net in (generator, discriminator):
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.bias is not None:
            nn.init.zeros_(module.bias)
adam_g, adam_d = (torch.optim.Adam(net.parameters(), lr=2e-4, betas=(0.5, 0.999)) for net in (generator, discriminator))
bce = nn.BCEWithLogitsLoss()
for epoch in range(args.epochs):
    for index in torch.randperm(len(images)).split(128):
        x = images[index].float() / 127.5 - 1
        ones, zeros = torch.ones(len(x)), torch.zeros(len(x))
        adam_d.zero_grad()
        bce(discriminator(x), ones).backward()
        fake = generator(torch.randn(len(x), 100))
        bce(discriminator(fake.detach()), zeros).backward()
        adam_d.step()
        adam_g.zero_grad()
        g_loss = bce(discriminator(fake), ones)
        g_loss.backward()
        adam_g.step()
    print(f"PyTorch, seed {args.seed}: epoch {epoch + 1} of {args.epochs}, generator's loss {g_loss.item():.2f}", flush=True)
generator.eval()
with torch.no_grad():
    made = [generator(torch.randn(100, 100)) for _ in range(-(-args.samples // 100))]
bytes_ = (torch.cat(made)[: args.samples, 0] * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
np.save(args.out, bytes_.numpy())
