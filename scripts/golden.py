#!/usr/bin/env python3
"""Writes PyTorch's own values for three updates of small models and for augmented images: what the tests hold ganvae against.

Usage: golden.py [--check] [OUT_DIR]        (OUT_DIR defaults to tests/golden; needs torch, numpy and safetensors)

Without --check, writes OUT_DIR/CASE.safetensors for every case. With --check, computes all of it again and compares:
exit 0 when everything agrees, 1 with one sentence for each case that does not.

The models are written with PyTorch's layers, losses, distributions and optimizers alone, so that they are a second
account of the same mathematics. A file holds, all in float32 but the values:

    x.I, noise.I              images in [0,1] and eps (VAE) or z (GAN) of update I = 0, 1, 2; the last batch is smaller
    prior.I                   (VAE with an MMD) samples of the prior
    init.NAME                 weights and buffers before the first update
    value.I.KEY               float64 scalars of update I: loss, recon, kl and more, or d_loss, g_loss, d_real, d_fake, penalty
    mix.I, eps_real.I, eps_fake.I     the random numbers of a GAN's penalties, where it has some
    grad.0.NAME               gradients of the first update (a GAN's generator against the updated discriminator), of the
                              last one of the discriminator where a step has several
    final.NAME                weights and buffers after the third update
    exp_avg.NAME, exp_avg_sq.NAME     Adam's moments after the third update
    eval.decoded              images in [0,1] of z = noise.2, in evaluation mode, after the third update
    eval.mu, eval.logvar      (VAE) of x.2; eval.logits (GAN): the discriminator's of x.2

A case of augmented images (DiffAugment's published functions, with given numbers in place of random ones) holds:

    x, uniform                images [N,C,H,W] in [0,1]; numbers in [0,1) [N,16]
    y.LIST@P, grad.LIST@P     the images with the augmentations LIST, each at probability P; the gradient of sum(weight * y) in x
    weight                    [N,C,H,W]

The metadata key `case` is a JSON object: the case's name, its model and every hyper-parameter, and torch's version.
"""

import argparse
import json
import math
import sys
from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributions import ContinuousBernoulli, Normal, kl_divergence

BATCHES = (5, 5, 3)
ADAM = dict(lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8)
# `activation` is that of every hidden layer of a VAE and of a GAN's discriminator; a generator's is ReLU.
VAE = dict(ADAM, model="vae", arch="mlp", batch_norm=False, activation="relu", beta=1.0)
VAE_SMALL = dict(VAE, shape=[3, 4, 4], latent=4, encoder_hidden=[8], decoder_hidden=[8], activation="tanh")
GAN = dict(ADAM, model="gan", arch="mlp", batch_norm=False, activation="leaky-relu", gan_loss="non-saturating")
GAN_MLP = dict(GAN, shape=[1, 6, 5], latent=4, generator_hidden=[5, 8], discriminator_hidden=[8, 6])
# The last bias has a gradient of 0 where only differences of logits count: with this eps, rounding in it moves nothing.
GAN_DIFFERENCES = dict(GAN_MLP, eps=1e-4)
VAE_CONV = dict(VAE, arch="conv", shape=[1, 16, 16], base_width=4, latent=4, encoder_hidden=[10], decoder_hidden=[10])
GAN_CONV = dict(GAN, arch="conv", shape=[3, 16, 16], base_width=3, batch_norm=True, latent=5, lr=2e-4, beta1=0.5)

GAN_RESIDUAL = dict(
    GAN, arch="residual", shape=[3, 10, 9], latent=4, generator_hidden=[], discriminator_hidden=[5], gan_loss="relativistic",
    blocks=[1, 2], attention=5, lr=2e-4, beta1=0.0, beta2=0.99,
)

# A case's place gives its seed: new ones go to the end.
CASES = {
    "vae-mlp": dict(VAE, shape=[1, 6, 5], latent=3, encoder_hidden=[7], decoder_hidden=[6, 9]),
    "vae-tanh-beta": dict(
        VAE, shape=[3, 4, 4], latent=4, encoder_hidden=[8], decoder_hidden=[8], activation="tanh", beta=2.5
    ),
    "vae-conv": VAE_CONV,
    "gan-mlp-ns": GAN_MLP,
    "gan-mlp-minimax": dict(GAN_MLP, gan_loss="minimax", activation="relu"),
    "gan-conv": dict(GAN_CONV, generator_hidden=[], discriminator_hidden=[]),
    "gan-least-squares": dict(GAN_MLP, gan_loss="least-squares"),
    "gan-hinge": dict(GAN_DIFFERENCES, gan_loss="hinge"),
    "gan-wasserstein": dict(GAN_DIFFERENCES, gan_loss="wasserstein"),
    "gan-relativistic": dict(GAN_DIFFERENCES, gan_loss="relativistic"),
    "gan-r1-r2": dict(GAN_DIFFERENCES, gan_loss="relativistic", r1=0.5, r2=0.2),
    "gan-r1-lazy": dict(GAN_MLP, r1=3.0, every=2, d_lr=2e-3),
    "gan-wgan-gp": dict(GAN_MLP, eps=1e-3, gan_loss="wasserstein", gradient=10.0, d_steps=2),
    "gan-lecam": dict(GAN_MLP, gan_loss="least-squares", lecam=0.3),
    "gan-first-order": dict(GAN_MLP, r1=2.0, r2=5.0, first_order=True),
    "gan-conv-r1-r2": dict(
        GAN_CONV, generator_hidden=[], discriminator_hidden=[], base_width=2, d_norm=False, activation="tanh", r1=1.5, r2=2.5
    ),
    "augment-colour": dict(model="augment", shape=[3, 8, 8], without=[]),
    "augment-alpha": dict(model="augment", shape=[4, 5, 5], without=[]),
    "augment-grey": dict(model="augment", shape=[1, 7, 10], without=["turn", "saturation"]),
    "gan-spectral": dict(
        GAN_CONV, generator_hidden=[], discriminator_hidden=[4], gan_loss="hinge", base_width=2, d_norm=False, spectral=True, eps=1e-4
    ),
    "gan-residual": dict(GAN_RESIDUAL, block="plain", widths=[3, 6], r1=0.5, r2=0.2, eps=1e-4),
    "gan-grouped": dict(GAN_RESIDUAL, block="grouped", widths=[8, 16], r1=0.5, eps=1e-4),
    "vae-linear": dict(
        VAE, shape=[1, 6, 5], latent=3, encoder_hidden=[7], decoder_hidden=[6], schedule="linear", steps=4, lr_end=1e-4, beta2_end=0.9
    ),
    "gan-cosine": dict(
        GAN_DIFFERENCES, eps=1e-3, gan_loss="relativistic", d_lr=2e-3, beta2=0.9, r1=0.5, r2=0.2,
        schedule="cosine", steps=4, lr_end=2.5e-4, beta2_end=0.99, r1_end=0.05, r2_end=0.02
    ),
    "vae-continuous-bernoulli": dict(VAE_SMALL, likelihood="continuous-bernoulli"),
    "vae-gaussian-fixed": dict(VAE_SMALL, likelihood="gaussian", sigma=0.3),
    "vae-gaussian-learned": dict(VAE_SMALL, likelihood="gaussian", sigma="learned"),
    "vae-gaussian-optimal": dict(VAE_SMALL, likelihood="gaussian", sigma="optimal"),
    "vae-logistic": dict(VAE_SMALL, likelihood="logistic"),
    "vae-samples": dict(VAE_SMALL, samples=3),
    "vae-iwae": dict(VAE_SMALL, samples=4, bound="iwae", likelihood="gaussian", sigma=0.5),
    "vae-iwae-1": dict(VAE_SMALL, bound="iwae"),
    "vae-free-bits": dict(VAE_SMALL, bound="free-bits", free_bits=0.12, beta=1.5),
    "vae-capacity": dict(VAE_SMALL, bound="capacity", capacity=3.0, beta=20.0),
    "vae-tc": dict(VAE_SMALL, bound="tc", tc=6.0, images=100, eps=1e-4),
    "vae-mmd": dict(VAE_SMALL, bound="mmd", mmd=50.0, beta=0.5),
    "gan-classes": dict(GAN_RESIDUAL, block="plain", widths=[3, 6], r1=0.5, r2=0.2, eps=1e-4, classes=3),
    "gan-projection": dict(
        GAN_CONV, generator_hidden=[], discriminator_hidden=[4], gan_loss="hinge", base_width=2, d_norm=False, spectral=True, eps=1e-4,
        classes=4
    ),
}


class TwoHeads(nn.Module):
    """An encoder: trunk, then mu and logvar."""

    def __init__(self, trunk, width, latent):
        super().__init__()
        self.trunk = trunk
        self.mu = nn.Linear(width, latent)
        self.logvar = nn.Linear(width, latent)

    def forward(self, x):
        h = self.trunk(x)
        return self.mu(h), self.logvar(h)


class Decoder(nn.Module):
    """A synthesis network with the numbers that a Gaussian likelihood learns."""

    def __init__(self, trunk, sigma):
        super().__init__()
        self.trunk = trunk
        if sigma == "learned":
            self.log_sigma = nn.Parameter(torch.zeros(()))
        elif sigma == "optimal":
            self.register_buffer("squared_error", torch.full((2,), 1e-6))  # averages of the error and of 1

    def forward(self, z):
        return self.trunk(z)


class OneHead(nn.Module):
    """A discriminator on images in [0,1], which it sees in [-1,1]: trunk, then one logit for each image, with a projection on its class."""

    def __init__(self, trunk, width, classes=None):
        super().__init__()
        self.trunk = trunk
        self.out = nn.Linear(width, 1)
        if classes:
            self.class_embedding = nn.Embedding(classes, width)

    def forward(self, x, labels=None):
        h = self.trunk(2 * x - 1)
        logits = self.out(h)[:, 0]
        return logits if labels is None else logits + (self.class_embedding(labels) * h).sum(1)


class Images(nn.Module):
    """A generator: a synthesis network whose tanh is moved from [-1,1] to [0,1], without tanh and limited after training if `linear`;
    classes are embedded beside z."""

    def __init__(self, trunk, latent, linear, classes=None):
        super().__init__()
        self.trunk, self.linear = trunk, linear
        if classes:
            self.class_embedding = nn.Embedding(classes, latent)

    def forward(self, z, labels=None):
        z = z if labels is None else torch.cat([z, self.class_embedding(labels)], 1)
        if self.linear:
            x = (self.trunk(z) + 1) / 2
            return x if self.training else x.clamp(0, 1)
        return (torch.tanh(self.trunk(z)) + 1) / 2


def activation(name):
    return {"relu": nn.ReLU(), "leaky-relu": nn.LeakyReLU(0.2), "tanh": nn.Tanh()}[name]


def dense(layers, width, hidden, act):
    """Appends fc1, fc2, ... and returns the last width."""
    for i, out in enumerate(hidden, 1):
        layers[f"fc{i}"] = nn.Linear(width, out)
        layers[f"act{i}"] = activation(act)
        width = out
    return width


def latent_width(case):
    """Of what enters the first layer of a decoder or generator: z, and an embedding as wide where there are classes."""
    return case["latent"] * (2 if "classes" in case else 1)


def stages(case):
    """How often both sides halve (while even and the result is at least 4), and what is left of them."""
    _, h, w = case["shape"]
    n = 0
    while h % 2 == 0 and w % 2 == 0 and min(h, w) // 2 >= 4:
        n, h, w = n + 1, h // 2, w // 2
    return n, h, w


class Residual(nn.Module):
    """A residual network of two resolutions: images [3,10,9], with a column of zeros at their right, and features [C,5,5]."""

    def __init__(self, case, hidden, act, makes_images):
        super().__init__()
        self.act, self.block, self.makes_images = activation(act), case["block"], makes_images
        self.blocks, (wide, narrow) = case["blocks"], case["widths"]
        for i, n in enumerate(case["blocks"]):
            for j in range(n):
                self.add_block(f"block{i}_{j}", case["widths"][i])
        for name, to in (("q", max(narrow // 8, 1)), ("k", max(narrow // 8, 1)), ("v", narrow // 2)):
            self.add_module(f"attention_{name}", nn.Conv2d(narrow, to, 1, bias=False))
        self.attention_out = nn.Conv2d(narrow // 2, narrow, 1, bias=False)
        if makes_images:
            self.base = nn.Linear(latent_width(case), narrow * 25)
            self.up1_conv = nn.Conv2d(narrow, wide, 1, bias=False)
            self.image = nn.Conv2d(wide, 3, 3, padding=1)
        else:
            self.stem = nn.Conv2d(3, wide, 3, padding=1)
            self.down0_conv = nn.Conv2d(wide, narrow, 1, bias=False)
            self.fc1 = nn.Linear(narrow * 25, hidden[0])

    def add_block(self, name, width):
        if self.block == "plain":
            layers = [nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)]
        else:
            inner = 2 * width
            grouped = nn.Conv2d(inner, inner, 3, padding=1, groups=inner // 16)
            layers = [nn.Conv2d(width, inner, 1), grouped, nn.Conv2d(inner, width, 1, bias=False)]
        for k, layer in enumerate(layers, 1):
            self.add_module(f"{name}_conv{k}", layer)

    def stage(self, x, i):
        for j in range(self.blocks[i]):
            conv = lambda k, h: self.get_submodule(f"block{i}_{j}_conv{k}")(h)
            if self.block == "plain":
                x = x + conv(2, self.act(conv(1, self.act(x))))
            else:
                x = x + conv(3, self.act(conv(2, self.act(conv(1, x)))))
        if i == 0:
            return x
        q, k, v = (self.get_submodule(f"attention_{name}")(x).flatten(2).transpose(1, 2) for name in "qkv")
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.attention_out(mixed.transpose(1, 2).unflatten(2, (5, 5)))

    def forward(self, x):
        if self.makes_images:
            x = self.up1_conv(self.stage(self.base(x).unflatten(1, (-1, 5, 5)), 1))
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            return self.image(self.act(self.stage(x, 0)))[:, :, :, :9]
        x = self.stage(self.stem(F.pad(x, (0, 1))), 0)
        x = self.stage(self.down0_conv(F.avg_pool2d(x, 2)), 1)
        return self.act(self.fc1(self.act(x).flatten(1)))


def features(case, hidden):
    """Image to vector; returns the layers and the width."""
    if case["arch"] == "residual":
        return Residual(case, hidden, case["activation"], False), hidden[-1]
    layers, act = OrderedDict(), case["activation"]
    channels, h, w = case["shape"]
    if case["arch"] == "conv":
        n, h, w = stages(case)
        for i in range(1, n + 1):
            out = case["base_width"] * 2 ** (i - 1)
            norm = case.get("d_norm", case["batch_norm"]) and i > 1
            layers[f"conv{i}"] = nn.Conv2d(channels, out, 4, stride=2, padding=1, bias=not norm)
            if norm:
                layers[f"bn{i}"] = nn.BatchNorm2d(out)
            layers[f"conv_act{i}"] = activation(act)
            channels = out
    layers["flatten"] = nn.Flatten()
    width = dense(layers, channels * h * w, hidden, act)
    return nn.Sequential(layers), width


def synthesis(case, hidden, act):
    """Vector to image, no activation on the output."""
    if case["arch"] == "residual":
        return Residual(case, hidden, act, True)
    layers, norm = OrderedDict(), case["batch_norm"]
    width = dense(layers, latent_width(case), hidden, act)
    if case["arch"] == "mlp":
        channels, h, w = case["shape"]
        layers["out"] = nn.Linear(width, channels * h * w)
        layers["image"] = nn.Unflatten(1, (channels, h, w))
        return nn.Sequential(layers)
    n, h, w = stages(case)
    channels = case["base_width"] * 2 ** (n - 1) * (2 if norm else 1)
    layers["base"] = nn.Linear(width, channels * h * w, bias=not norm)
    layers["grid"] = nn.Unflatten(1, (channels, h, w))
    if norm:
        layers["bn0"] = nn.BatchNorm2d(channels)
    layers["base_act"] = activation(act)
    for i in range(1, n):
        layers[f"convt{i}"] = nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=not norm)
        channels //= 2
        if norm:
            layers[f"bn{i}"] = nn.BatchNorm2d(channels)
        layers[f"conv_act{i}"] = activation(act)
    layers[f"convt{n}"] = nn.ConvTranspose2d(channels, case["shape"][0], 4, stride=2, padding=1)
    return nn.Sequential(layers)


def build(case):
    """The case's two networks with PyTorch's initialisation, by name."""
    if case["model"] == "vae":
        encoder = TwoHeads(*features(case, case["encoder_hidden"]), case["latent"])
        channels, h, w = case["shape"]
        wide = dict(case, shape=[channels * (2 if case.get("likelihood") == "logistic" else 1), h, w])
        decoder = Decoder(synthesis(wide, case["decoder_hidden"], case["activation"]), case.get("sigma"))
        return nn.ModuleDict({"encoder": encoder, "decoder": decoder})
    generator = Images(synthesis(case, case["generator_hidden"], "relu"), case["latent"], case["arch"] == "residual", case.get("classes"))
    discriminator = OneHead(*features(case, case["discriminator_hidden"]), case.get("classes"))
    if case.get("spectral"):
        for layer in discriminator.modules():
            if isinstance(layer, (nn.Conv2d, nn.Linear, nn.Embedding)):
                nn.utils.spectral_norm(layer)
    return nn.ModuleDict({"generator": generator, "discriminator": discriminator})


def exported(name):
    """ganvae's name of a variable: `trunk` is a matter of this file only."""
    for theirs, ours in ((".trunk.", "."), ("weight_orig", "weight"), ("weight_u", "spectral_left"), ("weight_v", "spectral_right")):
        name = name.replace(theirs, ours)
    return name


def state(nets, prefix):
    """Every weight and buffer but BatchNorm's batch counter, which ganvae does not keep."""
    items = nets.state_dict().items()
    return {f"{prefix}.{exported(k)}": v.clone() for k, v in items if not k.endswith("num_batches_tracked")}


def gradients(net, prefix):
    return {f"grad.0.{prefix}.{exported('.' + k)[1:]}": p.grad.clone() for k, p in net.named_parameters()}


def adam(net, case):
    return torch.optim.Adam(net.parameters(), lr=case["lr"], betas=(case["beta1"], case["beta2"]), eps=case["eps"])


def adam_of_discriminator(net, case):
    """With its own learning rate, and scaled for lazy penalties (arXiv 1912.04958, appendix B)."""
    k = case.get("every", 1)
    c = k / (k + 1) if k > 1 else 1
    lr, betas = case.get("d_lr", case["lr"]) * c, (case["beta1"] ** c, case["beta2"] ** c)
    return torch.optim.Adam(net.parameters(), lr=lr, betas=betas, eps=case["eps"])


def scheduled(case, key, step):
    """A hyper-parameter after so many updates, on the way to its end if it has one: R3GAN's cosine_decay_with_warmup, or a line."""
    start, end = case.get(key, 0), case.get(f"{key}_end", case.get(key, 0))
    t = step / case.get("steps", 1)
    return start + (t if case.get("schedule") == "linear" else 1 - 0.5 * (1 + math.cos(math.pi * t))) * (end - start)


def stepper(case, optimizer):
    """optimizer.step, with one of PyTorch's schedules of the learning rate and R3GAN's way to change the second decay."""
    if "schedule" not in case:
        return optimizer.step
    (group,), share, updates = optimizer.param_groups, case["lr_end"] / case["lr"], [0]
    if case["schedule"] == "linear":
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, share, case["steps"])
    else:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, case["steps"], group["lr"] * share)

    def step():
        group["betas"] = (case["beta1"], scheduled(case, "beta2", updates[0]))
        optimizer.step()
        schedule.step()
        updates[0] += 1

    return step


def moments(nets, optimizers):
    out = {}
    for name, p in nets.named_parameters():
        (held,) = [o.state[p] for o in optimizers if p in o.state]
        out[f"exp_avg.{exported(name)}"] = held["exp_avg"].clone()
        out[f"exp_avg_sq.{exported(name)}"] = held["exp_avg_sq"].clone()
    return out


def values(i, **terms):
    return {f"value.{i}.{k}": v.detach().double() for k, v in terms.items()}


def nll_of_pixels(case, decoder, outputs, x):
    """-log p(x|z) of each pixel value: outputs [B,K,P*C,H,W] of the decoder, x [B,1,C,H,W]; and sigma, where there is one."""
    kind = case.get("likelihood", "bernoulli")
    if kind == "bernoulli":
        return F.binary_cross_entropy_with_logits(outputs, x.expand_as(outputs), reduction="none"), None
    if kind == "continuous-bernoulli":
        # The distribution's own Taylor series about 1/2 is cut after two terms: keep it out of the way.
        return -ContinuousBernoulli(logits=outputs.double(), lims=(0.4999, 0.5001), validate_args=False).log_prob(x.double()), None
    if kind == "gaussian":
        mean, sigma = torch.sigmoid(outputs), case["sigma"]
        if sigma == "learned":
            sigma = torch.exp(decoder.log_sigma)
        elif sigma == "optimal":
            error = (mean - x).pow(2).mean()
            sigma = error.sqrt()  # with its gradient, which is 0
            now = torch.stack([error, torch.ones_like(error)]).detach()
            decoder.squared_error.mul_(0.99).add_(0.01 * now)
        return -Normal(mean, sigma).log_prob(x), torch.as_tensor(sigma)
    # As in PixelCNN++: differences of the logistic distribution function, here in double precision, x and mean in [0,1].
    location, log_scale = outputs.double().chunk(2, dim=2)
    mean, scale, x = torch.sigmoid(location), torch.exp(log_scale.clamp(min=-7)), x.double()
    below, above = (torch.sigmoid((x + off / 255 - mean) / scale) for off in (-0.5, 0.5))
    p = torch.where(x < 1e-3, above, torch.where(x > 1 - 1e-3, 1 - below, above - below))
    return -torch.log(p), None


def imq_mmd(a, b):
    """Wasserstein auto-encoders, algorithm 2, with the inverse multiquadric kernel of scale 2 * Z."""
    n, scale = len(a), 2 * a.shape[1]
    k = lambda u, v: scale / (scale + (u - v).pow(2).sum())
    within = lambda u: sum(k(u[i], u[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return within(a) + within(b) - 2 * sum(k(u, v) for u in a for v in b) / n**2


def bound_of_vae(case, nll, q, z, prior):
    """The loss of a case and its terms from -log p(x|z) [B,K], q(z|x), z [B,K,Z]."""
    zero, kind = torch.zeros(()), case.get("bound", "elbo")
    kls = kl_divergence(q, Normal(torch.zeros_like(q.loc), torch.ones_like(q.loc)))  # [B,Z]
    recon, kl, beta = nll.mean(), kls.sum(1).mean(), case["beta"]
    if kind == "elbo":
        return recon + beta * kl, {}
    if kind == "iwae":
        log_p, log_q = Normal(zero, zero + 1).log_prob(z).sum(2), Normal(q.loc[:, None], q.scale[:, None]).log_prob(z).sum(2)
        log_w = log_p - nll - log_q
        return -(torch.logsumexp(log_w, 1) - math.log(z.shape[1])).mean(), {}
    if kind == "free-bits":
        return recon + beta * torch.maximum(kls.mean(0), zero + case["free_bits"]).sum(), {}
    if kind == "capacity":
        return recon + beta * (kl - case["capacity"]).abs(), {}
    if kind == "mmd":
        mmd = imq_mmd(z[:, 0], prior)
        return recon + beta * kl + case["mmd"] * mmd, {"mmd": mmd}
    # beta-TC: log q(z) from log q(z_i|x_j), i.e. minibatch-weighted sampling, equation 3 and appendix C of the paper.
    z, log_count = z[:, 0], math.log(len(z) * case["images"])
    log_qz_given = q.log_prob(z).sum(1)
    matrix = Normal(q.loc[None], q.scale[None]).log_prob(z[:, None])  # [B,B,Z]
    log_qz = torch.logsumexp(matrix.sum(2), 1) - log_count
    log_product = (torch.logsumexp(matrix, 1) - log_count).sum(1)
    log_p = Normal(zero, zero + 1).log_prob(z).sum(1)
    mi, tc, dimension = (log_qz_given - log_qz).mean(), (log_qz - log_product).mean(), (log_product - log_p).mean()
    terms = {"mutual_information": mi, "total_correlation": tc, "dimension_kl": dimension}
    return recon + beta * (mi + case["tc"] * tc + dimension), terms


def train_vae(case, nets, xs, noises, priors):
    out, optimizer = {}, adam(nets, case)
    step = stepper(case, optimizer)
    for i, (x, eps, prior) in enumerate(zip(xs, noises, priors)):
        optimizer.zero_grad()
        mu, logvar = nets["encoder"](x)
        q = Normal(mu, torch.exp(logvar / 2))
        eps = eps.reshape(len(x), -1, case["latent"])  # [B,K,Z]
        z = q.loc[:, None] + q.scale[:, None] * eps
        outputs = nets["decoder"](z.flatten(0, 1)).unflatten(0, z.shape[:2])
        nll, sigma = nll_of_pixels(case, nets["decoder"], outputs, x[:, None])
        nll = nll.sum((2, 3, 4))
        recon, kl = nll.mean(), kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu))).sum() / len(x)
        loss, terms = bound_of_vae(case, nll, q, z, prior)
        if case.get("sigma") in ("learned", "optimal"):
            terms["sigma"] = sigma
        loss.backward()
        if i == 0:
            out |= gradients(nets["encoder"], "encoder") | gradients(nets["decoder"], "decoder")
        step()
        out |= values(i, loss=loss, recon=recon, kl=kl, **terms)
    return out | moments(nets, [optimizer])


def running_statistics(net, updated):
    """Whether BatchNorm's running statistics follow the batches (the statistics of the batch itself are used either way), and
    whether spectral normalisation makes a power iteration."""
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 0.1 if updated else 0.0
        if hasattr(layer, "weight_u"):
            layer.train(updated)


def losses(case):
    """The losses of both players: functions of the logits r of real and f of generated images."""
    bce, mse, relu = nn.BCEWithLogitsLoss(), nn.MSELoss(), torch.relu
    one, zero = torch.ones_like, torch.zeros_like
    logistic = lambda r, f: bce(r, one(r)) + bce(f, zero(f))
    return {
        "non-saturating": (logistic, lambda r, f: bce(f, one(f))),
        "minimax": (logistic, lambda r, f: -bce(f, zero(f))),
        "least-squares": (lambda r, f: (mse(r, one(r)) + mse(f, zero(f))) / 2, lambda r, f: mse(f, one(f)) / 2),
        "hinge": (lambda r, f: relu(1 - r).mean() + relu(1 + f).mean(), lambda r, f: -f.mean()),
        "wasserstein": (lambda r, f: f.mean() - r.mean(), lambda r, f: -f.mean()),
        "relativistic": (lambda r, f: bce(r - f, one(r)), lambda r, f: bce(f - r, one(r))),
    }[case["gan_loss"]]


def slope_penalty(case, discriminator, x, fake, draws):
    """R1, R2 and WGAN-GP's, of images u in [-1,1]."""
    critic, total = lambda u: discriminator((u + 1) / 2, draws.get("labels")), 0
    for kind, images in (("r1", 2 * x - 1), ("r2", 2 * fake - 1)):
        gamma = case.get(kind, 0)
        if gamma and case.get("first_order"):
            moved = images + 0.01 * draws["eps_real" if kind == "r1" else "eps_fake"]
            total += gamma / (2 * 0.01**2) * F.mse_loss(critic(images), critic(moved))
        elif gamma:
            u = images.detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic(u).sum(), u, create_graph=True)
            total += gamma / 2 * slope.flatten(1).pow(2).sum(1).mean()
    if case.get("gradient"):
        u = (draws["mix"] * (2 * x - 1) + (1 - draws["mix"]) * (2 * fake - 1)).detach().requires_grad_()
        (slope,) = torch.autograd.grad(critic(u).sum(), u, create_graph=True)
        total += case["gradient"] * (slope.flatten(1).norm(dim=1) - 1).pow(2).mean()
    return total


def lecam(case, means, r, f):
    """LeCam's penalty; `means` are those of r and of f in all updates, this one included, the newest last."""
    weights = torch.tensor([0.99**age for age in range(len(means))], dtype=r.dtype).flip(0)
    of_real, of_fake = (torch.tensor(kind, dtype=r.dtype) @ weights / weights.sum() for kind in zip(*means))
    return case["lecam"] * (torch.relu(r - of_fake).pow(2).mean() + torch.relu(of_real - f).pow(2).mean())


def penalty_noise(case, x):
    """The random numbers of a step's penalties, float32, and the classes of its images."""
    if case.get("first_order"):
        return {"eps_real": torch.randn(x.shape), "eps_fake": torch.randn(x.shape)}
    if "classes" in case:
        return {"labels": torch.randint(case["classes"], (len(x),))}
    return {"mix": torch.rand(len(x), 1, 1, 1)} if case.get("gradient") else {}


def train_gan(case, nets, xs, noises, draws):
    out, (d_loss_of, g_loss_of) = {}, losses(case)
    generator, discriminator = nets["generator"], nets["discriminator"]
    adam_d, adam_g = adam_of_discriminator(discriminator, case), adam(generator, case)
    step_d, step_g = stepper(case, adam_d), stepper(case, adam_g)
    paired, means, updates = case["gan_loss"] == "relativistic", [], 0
    for i, (x, z, drawn) in enumerate(zip(xs, noises, draws)):
        # A part of the batch for each update: the paired loss has one of its own in the generator's.
        size = -(-len(x) // (case.get("d_steps", 1) + paired))
        parts = list(zip(x.split(size), z.split(size), *(drawn[key].split(size) for key in drawn)))
        g_part, d_parts = parts[-1], parts[:-1] if paired else parts
        penalties, now = [], case | {key: scheduled(case, key, i) for key in ("r1", "r2")}
        for x, z, *part in d_parts:
            drawn_now = dict(zip(drawn, part))
            labels = drawn_now.get("labels")
            fake = generator(z, labels)
            adam_d.zero_grad()
            running_statistics(discriminator, True)
            real_logits = discriminator(x, labels)
            running_statistics(discriminator, False)  # they are those of real images
            fake_logits = discriminator(fake.detach(), labels)
            d_loss = d_loss_of(real_logits, fake_logits)
            penalty, k = 0 * d_loss, case.get("every", 1)
            if updates % k == 0:
                penalty = penalty + slope_penalty(now, discriminator, x, fake.detach(), drawn_now)
            total = d_loss + k * penalty
            if case.get("lecam"):
                means.append((real_logits.mean().item(), fake_logits.mean().item()))
                penalty = penalty + lecam(case, means, real_logits, fake_logits)
                total = d_loss + penalty
            total.backward()
            if i == 0:
                out |= gradients(discriminator, "discriminator")
            step_d()
            penalties.append(penalty.detach())
            updates += 1
        adam_g.zero_grad()
        if paired:
            labels = dict(zip(drawn, g_part[2:])).get("labels")
            x, fake = g_part[0], generator(g_part[1], labels)
        g_loss = g_loss_of(discriminator(x, labels), discriminator(fake, labels))  # the updated discriminator, else the same images
        g_loss.backward()
        if i == 0:
            out |= gradients(generator, "generator")
        step_g()
        out |= values(i, d_loss=d_loss, g_loss=g_loss, d_real=real_logits.mean(), d_fake=fake_logits.mean())
        if any(case.get(key) for key in ("r1", "r2", "gradient", "lecam")):
            out |= values(i, penalty=torch.stack(penalties).mean())
    return out | moments(nets, [adam_d, adam_g])


@torch.no_grad()
def evaluation(case, nets, x, z, labels):
    nets.eval()
    if "decoder" in nets:
        (mu, logvar), outputs = nets["encoder"](x), nets["decoder"](z)
        image = torch.sigmoid(outputs[:, : case["shape"][0]])
        if case.get("likelihood") == "continuous-bernoulli":
            image = ContinuousBernoulli(logits=outputs.double()).mean
        return {"eval.decoded": image, "eval.mu": mu, "eval.logvar": logvar}
    return {"eval.decoded": nets["generator"](z, labels), "eval.logits": nets["discriminator"](x, labels)}


# After https://github.com/mit-han-lab/data-efficient-gans, DiffAugment_pytorch.py, on images in [-1,1]: `u` [N,...] is what
# torch.rand gives there, and whole numbers below n, which torch.randint gives there, are floor(u * n).


def brightness(x, u):
    return x + (u[0] - 0.5)


def saturation(x, u):
    x_mean = x.mean(dim=1, keepdim=True)
    return (x - x_mean) * (u[0] * 2) + x_mean


def contrast(x, u):
    x_mean = x.mean(dim=[1, 2, 3], keepdim=True)
    return (x - x_mean) * (u[0] + 0.5) + x_mean


def shift(x, u, ratio=0.125):
    shift_x, shift_y = int(x.size(2) * ratio + 0.5), int(x.size(3) * ratio + 0.5)
    translation_x = (u[0] * (2 * shift_x + 1)).floor().long().view(-1, 1, 1) - shift_x
    translation_y = (u[1] * (2 * shift_y + 1)).floor().long().view(-1, 1, 1) - shift_y
    grid_batch, grid_x, grid_y = torch.meshgrid(
        torch.arange(x.size(0)), torch.arange(x.size(2)), torch.arange(x.size(3)), indexing="ij"
    )
    grid_x = torch.clamp(grid_x + translation_x + 1, 0, x.size(2) + 1)
    grid_y = torch.clamp(grid_y + translation_y + 1, 0, x.size(3) + 1)
    x_pad = F.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
    return x_pad.permute(0, 2, 3, 1).contiguous()[grid_batch, grid_x, grid_y].permute(0, 3, 1, 2)


def cutout(x, u, ratio=0.5):
    cutout_size = int(x.size(2) * ratio + 0.5), int(x.size(3) * ratio + 0.5)
    offset_x = (u[0] * (x.size(2) + (1 - cutout_size[0] % 2))).floor().long().view(-1, 1, 1)
    offset_y = (u[1] * (x.size(3) + (1 - cutout_size[1] % 2))).floor().long().view(-1, 1, 1)
    grid_batch, grid_x, grid_y = torch.meshgrid(
        torch.arange(x.size(0)), torch.arange(cutout_size[0]), torch.arange(cutout_size[1]), indexing="ij"
    )
    grid_x = torch.clamp(grid_x + offset_x - cutout_size[0] // 2, min=0, max=x.size(2) - 1)
    grid_y = torch.clamp(grid_y + offset_y - cutout_size[1] // 2, min=0, max=x.size(3) - 1)
    mask = torch.ones(x.size(0), x.size(2), x.size(3), dtype=x.dtype)
    mask[grid_batch, grid_x, grid_y] = 0
    return x * mask.unsqueeze(1)


def mirror(x, u):
    return torch.stack([torch.flip(image, [2]) if v < 0.5 else image for image, v in zip(x, u[0].flatten())])


def turn(x, u):
    return torch.stack([torch.rot90(image, int(v * 4), [1, 2]) for image, v in zip(x, u[0].flatten())])


# In the order of application, with the columns of `uniform`: whether it is applied, then its numbers.
COLOURS = {"brightness": (brightness, [0, 1]), "saturation": (saturation, [2, 3]), "contrast": (contrast, [4, 5])}
MOVES = {"mirror": (mirror, [6, 7]), "turn": (turn, [8, 9]), "shift": (shift, [10, 11, 12])}
AUGMENTATIONS = COLOURS | MOVES | {"cutout": (cutout, [13, 14, 15])}


def augmented(x, uniform, names, p):
    for name in names:
        function, (gate, *places) = AUGMENTATIONS[name]
        u = [uniform[:, i].view(-1, 1, 1, 1) for i in places]
        chosen = uniform[:, gate].view(-1, 1, 1, 1) < p
        colour, alpha = (x[:, :3], x[:, 3:]) if name in COLOURS else (x, x[:, :0])
        x = torch.where(chosen, torch.cat([function(colour, u), alpha], 1), x)
    return x


def run_augment(case, dtype):
    n = 8
    x = torch.rand(n, *case["shape"]).to(dtype).requires_grad_()
    uniform = torch.rand(n, 16).to(dtype)
    weight = torch.randn(n, *case["shape"]).to(dtype)
    out = {"x": x.detach(), "uniform": uniform, "weight": weight}
    names = [name for name in AUGMENTATIONS if name not in case["without"]]
    for used, p in [([name], 1.0) for name in names] + [(names, 1.0), (names, 0.625)]:
        y = (augmented(2 * x - 1, uniform, used, p) + 1) / 2
        (grad,) = torch.autograd.grad((weight * y).sum(), x)
        key = f"{','.join(used)}@{p}"
        out |= {f"y.{key}": y.detach(), f"grad.{key}": grad}
    return out


def run(name, dtype):
    """All tensors of a case. The draws are float32 whatever the dtype, so that the two precisions start alike."""
    case = CASES[name]
    torch.manual_seed(1000 + list(CASES).index(name))
    if case["model"] == "augment":
        return run_augment(case, dtype)
    nets = build(case).to(dtype)
    # Grey levels of 8 bits, about a seventh of them exactly 0 and as many exactly 1.
    xs = [(torch.rand(n, *case["shape"]) * 1.4 - 0.2).clamp(0, 1).mul(255).round().div(255).to(dtype) for n in BATCHES]
    samples = [case["samples"]] if "samples" in case else []
    noises = [torch.randn(n, *samples, case["latent"]).to(dtype) for n in BATCHES]
    out = {f"x.{i}": x for i, x in enumerate(xs)} | {f"noise.{i}": z for i, z in enumerate(noises)}
    out |= state(nets, "init")
    if case["model"] == "vae":
        priors = [torch.randn(n, case["latent"]).to(dtype) if case.get("bound") == "mmd" else None for n in BATCHES]
        out |= {f"prior.{i}": prior for i, prior in enumerate(priors) if prior is not None}
        out |= train_vae(case, nets, xs, noises, priors)
    else:
        of_dtype = lambda t: t.to(dtype) if t.is_floating_point() else t
        draws = [{key: of_dtype(t) for key, t in penalty_noise(case, x).items()} for x in xs]
        out |= {f"{key}.{i}": t for i, drawn in enumerate(draws) for key, t in drawn.items()}
        out |= train_gan(case, nets, xs, noises, draws)
    return out | state(nets, "final") | evaluation(case, nets, xs[-1], noises[-1].flatten(0, -2), out.get("labels.2"))


def worst(got, want, rtol, atol):
    """The largest excess over the tolerance, as (ratio, name); atol counts in units of the tensor's largest value."""
    found = (0.0, "nothing")
    for name, w in want.items():
        g, w = got[name].double(), w.double()
        if g.shape != w.shape:
            return float("inf"), f"{name} (shape {tuple(g.shape)} against {tuple(w.shape)})"
        bound = rtol * w.abs() + atol * w.abs().max()
        # 0/0 is agreement: a tensor of zeros has no scale.
        excess = ((g - w).abs() / bound).nan_to_num(
            nan=0.0 if w.isfinite().all() and g.isfinite().all() else float("inf")
        )
        found = max(found, (excess.max().item(), name))
    return found


def compute(name):
    """The float32 tensors, after a float64 run has shown that rounding decides nothing in them."""
    single, double = run(name, torch.float32), run(name, torch.float64)
    excess, where = worst(single, double, 0.0, 1e-4)
    if excess > 1:
        sys.exit(
            f"{name}: {where} differs between float32 and float64 by {excess:.1e} times the 1e-4 allowed: choose another seed"
        )
    return single, excess * 1e-4


def check(name, path, tensors):
    """What is wrong with a committed file, or None."""
    if not path.is_file():
        return f"{path} is missing: run scripts/golden.py and commit what it writes"
    try:
        with safe_open(path, "pt") as f:
            held = {key: f.get_tensor(key) for key in f.keys()}
            case = json.loads(f.metadata()["case"])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        return f"{path} is not a file of golden values ({error}): run scripts/golden.py again"
    version = case.pop("torch", "of an unknown version")
    if case != {"case": name, **CASES[name]}:
        return f"{path} was written for other hyper-parameters than {name} has now: run scripts/golden.py again"
    if held.keys() != tensors.keys():
        return f"{path} lacks or adds {sorted(held.keys() ^ tensors.keys())[:5]}: run scripts/golden.py again"
    excess, where = worst(tensors, held, 1e-5, 1e-6)
    if excess > 1:
        return (
            f"{path}: {where} differs by {excess:.1f} times the tolerance (1e-5 relative, 1e-6 of the largest value) "
            f"from what torch {torch.__version__} computes now; the file was written by torch {version}"
        )
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    parser.add_argument(
        "out_dir", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)  # one order of summation, whatever the machine
    torch.use_deterministic_algorithms(True)
    wrong = []
    for name in CASES:
        path = args.out_dir / f"{name}.safetensors"
        tensors, rounding = compute(name)
        if args.check:
            problem = check(name, path, tensors)
            wrong += [problem] if problem else []
            print(f"{name}: {'differs' if problem else 'agrees'} ({len(tensors)} tensors)")
            continue
        args.out_dir.mkdir(parents=True, exist_ok=True)
        meta = {"case": name, **CASES[name], "torch": torch.__version__}
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, {"case": json.dumps(meta)})
        print(f"{name}: {len(tensors)} tensors, {path.stat().st_size} bytes, float32 within {rounding:.1e} of float64")
    for problem in wrong:
        print(problem, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
