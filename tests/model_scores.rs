//! Scores of models against programs that we did not write: PyTorch, scikit-learn, SciPy.

mod common;

use std::path::Path;

use common::python::{python, run};
use ganvae::base::seed::Rng;
use ganvae::base::weights_file;
use ganvae::config::{self, file};
use ganvae::data::dataset::Dataset;
use ganvae::metrics::disentanglement::{self, Factor};
use ganvae::metrics::likelihood::{self, Options};
use ganvae::metrics::reconstruction;
use ganvae::models::ModelKind;
use ganvae::run::trained::Trained;
use ganvae::{native, train};
use tch::{Device, Kind, Tensor};

/// Writes tensors for Python.
fn give(dir: &Path, all: Vec<(&str, Tensor)>) {
    let all = all.into_iter().map(|(name, t)| (name.to_owned(), t)).collect();
    weights_file::write(&dir.join("given.safetensors"), all).unwrap();
}

fn doubles(values: &[f64]) -> Tensor {
    Tensor::from_slice(values)
}

const BOUND: &str = "
import torch
from safetensors.torch import load_file
d = load_file('given.safetensors')
encoder, decoder = (torch.jit.load(f'run/export/{n}.pt').double().eval() for n in ('encoder', 'decoder'))
x, eps = d['x'].double(), d['eps'].double()
with torch.no_grad():
    mu, logvar = encoder(x)
    q = torch.distributions.Normal(mu[:, None], (logvar / 2).exp()[:, None])
    z = q.mean + q.stddev * eps
    mean = decoder(z.flatten(0, 1)).unflatten(0, z.shape[:2]).flatten(2)
    log_p = (torch.xlogy(x.flatten(1)[:, None], mean) + torch.xlogy(1 - x.flatten(1)[:, None], 1 - mean)).sum(2)
    prior = torch.distributions.Normal(0.0, 1.0)
    log_w = log_p + prior.log_prob(z).sum(2) - q.log_prob(z).sum(2)
    nll = torch.log(torch.tensor(eps.shape[1])) - torch.logsumexp(log_w, 1)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mu, (logvar / 2).exp()), prior).sum(1)
    recon = -log_p.mean(1)
def both(v): return [v.mean(), v.std() / len(v) ** 0.5]
want = torch.stack([*both(nll), *both(recon), *both(kl), *both(-recon - kl), (mu.var(0) > 0.01).sum()])
print(d['got'], want)
torch.testing.assert_close(d['got'], want, rtol=1e-5, atol=1e-6)
";

#[test]
fn the_bounds_are_those_of_pytorch_on_the_exported_modules() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    let tiny = format!(
        "steps = 60\neval-every = 0\nsample-every = 0\nlatent = 6\nencoder-hidden = 32\ndecoder-hidden = 32\nlr = 0.01\ntrain-limit = 256\ntest-limit = 40\n\
         device = 'cpu'\nout = '{}'",
        run_dir.display()
    );
    let (_, settings) = file::parse(&tiny, "tiny.toml".as_ref()).unwrap();
    train::train(&config::resolve(ModelKind::Vae, &settings).unwrap()).unwrap();
    let trained = Trained::open(&run_dir, "cpu").unwrap();
    let data = Dataset::new(&trained.source(None, None, false).unwrap().test, Device::Cpu).unwrap();
    let options = Options { samples: 150, seed: 9, rows: Some(100) };
    let s = likelihood::evaluate(trained.latent_variable().unwrap(), &data, options, &mut |_| Ok(())).unwrap();
    assert!(s.bits_per_dim.unwrap_err().contains("grey pixels") && s.images == 40 && s.latents == 6);
    let mut got: Vec<f64> = [s.nll, s.recon, s.kl, s.elbo].iter().flat_map(|e| [e.mean, e.standard_error]).collect();
    got.push(s.active_units as f64);
    let eps = likelihood::noise(9, 0, 40, 0..150, 6).unwrap();
    give(dir.path(), vec![("x", data.range(0, 40).unwrap().x), ("eps", eps), ("got", doubles(&got))]);
    run(&python, BOUND, dir.path());
}

/// What scikit-image 0.26 computes, which is not among the tests' packages: this gave its numbers to 1e-9.
const SIMILARITY: &str = "
import numpy as np
from scipy.ndimage import gaussian_filter
from safetensors.numpy import load_file
d = load_file('given.safetensors')
blur = lambda a: gaussian_filter(a, 1.5, truncate=3.5)
def ssim(x, y):
    ux, uy = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - ux * ux, blur(y * y) - uy * uy, blur(x * y) - ux * uy
    s = (2 * ux * uy + 1e-4) * (2 * vxy + 9e-4) / ((ux ** 2 + uy ** 2 + 1e-4) * (vx + vy + 9e-4))
    return s[5:-5, 5:-5].mean()
want = [np.mean([ssim(a, b) for a, b in zip(x, y)]) for x, y in zip(d['x'], d['y'])]
np.testing.assert_allclose(d['ssim'], want, rtol=1e-7)
psnr = 10 * np.log10(1 / ((d['x'] - d['y']) ** 2).mean((1, 2, 3)))
np.testing.assert_allclose(d['psnr'], psnr, rtol=1e-9)
";

#[test]
fn similarity_is_that_of_scipy() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let noise = |seed| native::randn(seed, &[6, 3, 19, 24]).unwrap();
    let sizes = Tensor::from_slice(&[0.01f32, 0.05, 0.1, 0.2, 0.5, 1.0]).view([6, 1, 1, 1]);
    let x = reconstruction::to_8_bits(&(noise(1) * 0.2 + 0.5)).unwrap();
    let y = reconstruction::to_8_bits(&(&x + noise(2) * sizes)).unwrap();
    let (ssim, psnr) = (reconstruction::ssim(&x, &y).unwrap().unwrap(), reconstruction::psnr(&x, &y).unwrap());
    give(dir.path(), vec![("x", x), ("y", y), ("ssim", ssim), ("psnr", psnr)]);
    run(&python, SIMILARITY, dir.path());
}

const FACTORS: &str = "
import numpy as np
from safetensors.numpy import load_file
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
d = load_file('given.safetensors')
codes, factors = d['codes'], d['factors']
n, z = codes.shape
def bins(v): return np.digitize(v, np.histogram(v, 20)[1][:-1])
of_codes = [bins(c) for c in codes.T]
of_factors = [f.astype(int) if k < 2 else bins(f) for k, f in enumerate(factors.T)]
def gap(v): return -np.diff(np.sort(v)[::-1][:2])[0]
mig = [gap([mutual_info_score(c, f) for c in of_codes]) / mutual_info_score(f, f) for f in of_factors]
np.testing.assert_allclose(d['mig'], mig, rtol=1e-9, atol=1e-12)

def thresholds(c, f):
    shares = {b: [np.sum((c[::2] == b) & (f[::2] == k)) / np.sum(f[::2] == k) for k in range(f.max() + 1)] for b in set(c)}
    return balanced_accuracy_score(f[1::2], [np.argmax(shares[b]) for b in c[1::2]])
sap = [gap([thresholds(c, f) for c in of_codes]) if k < 2 else gap([np.corrcoef(c, f)[0, 1] ** 2 for c in codes.T])
       for k, f in enumerate([*of_factors[:2], *factors.T[2:]])]
np.testing.assert_allclose(d['sap'], [np.mean(sap)], rtol=1e-9)

out = np.arange(n) % 5 == 4
importances, quality = [], []
for k, f in enumerate(factors.T):
    make = RandomForestClassifier if k < 2 else RandomForestRegressor
    forest = make(30, max_depth=12, min_samples_leaf=5, max_features=None, random_state=0).fit(codes[~out], f[~out])
    importances.append(forest.feature_importances_)
    quality.append(forest.score(codes[out], f[out]))
r = np.array(importances).T
print(np.round(r, 3), np.round(d['importances'], 3), quality, sep='\\n')
np.testing.assert_allclose(d['importances'], r, atol=0.04)
def concentration(r):
    p = r / r.sum(1, keepdims=True)
    return 1 + np.sum(p * np.log(np.maximum(p, 1e-300)), 1) / np.log(r.shape[1])
want = [np.sum(concentration(r) * r.sum(1) / r.sum()), concentration(r.T).mean(), np.mean(quality)]
print(d['dci'], want)
np.testing.assert_allclose(d['dci'], want, atol=0.02)
";

#[test]
fn disentanglement_is_that_of_scikit_learn() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (n, mut rng) = (3000, Rng::new(2));
    let classes: [u64; 2] = [6, 3];
    let factors: Vec<Factor> = (0..5)
        .map(|k| {
            let value = |_| match classes.get(k) {
                Some(count) => rng.below(*count) as f64,
                None => f64::from(rng.range(-1.0, 1.0) + rng.range(-1.0, 1.0)),
            };
            Factor { name: k.to_string(), values: (0..n).map(value).collect(), discrete: k < 2 }
        })
        .collect();
    // Each code mixes all factors, with noise and a bend.
    let mix: Vec<Vec<f64>> = (0..6).map(|_| (0..5).map(|_| f64::from(rng.normal())).collect()).collect();
    let code = |i: usize, rng: &mut Rng| -> Vec<f64> {
        let of = |m: &Vec<f64>, rng: &mut Rng| {
            let sum: f64 = m.iter().zip(&factors).map(|(m, f)| m * f.values[i]).sum();
            sum + 0.1 * sum.abs() + 0.5 * f64::from(rng.normal())
        };
        mix.iter().map(|m| of(m, rng)).collect()
    };
    let codes: Vec<f64> = (0..n).flat_map(|i| code(i, &mut rng)).collect();
    let codes = doubles(&codes).view([n as i64, 6]);
    let s = disentanglement::scores(&codes, &factors, 1).unwrap();
    let columns: Vec<Tensor> = factors.iter().map(|f| doubles(&f.values)).collect();
    let dci = [s.dci.disentanglement, s.dci.completeness, s.dci.informativeness];
    let importances = doubles(&s.dci.importances.concat()).view([6, 5]);
    let given = vec![
        ("codes", codes),
        ("factors", Tensor::stack(&columns, 1).to_kind(Kind::Double).contiguous()),
        ("mig", doubles(&s.mig_by_factor)),
        ("sap", doubles(&[s.sap])),
        ("importances", importances),
        ("dci", doubles(&dci)),
    ];
    give(dir.path(), given);
    run(&python, FACTORS, dir.path());
}
