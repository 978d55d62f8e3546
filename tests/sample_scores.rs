//! The scores of samples against torch-fidelity, prdc and SciPy on the same features, and against what they must say.

mod common;

use std::collections::HashMap;
use std::time::Instant;

use common::python;
use ganvae::base::seed::Rng;
use ganvae::metrics::frechet::{self, Statistics};
use ganvae::metrics::kernel_distance::{self, Draw, SUBSETS};
use ganvae::metrics::neighbours::{self, ManifoldScores, Memorisation, Nearest, manifold_scores};
use serde_json::Value;
use tch::{Kind, Tensor};

/// Writes pairs of features, the subsets that torch-fidelity draws, and the references' scores.
const REFERENCES: &str = r#"
import functools, io, contextlib, json
import numpy as np, scipy.linalg, torch
from safetensors.numpy import save_file
from torch_fidelity import metric_fid, metric_kid, metric_prc
from prdc import compute_prdc

rng = np.random.default_rng(1)
def normal(n, d, shift=0.0):
    return rng.standard_normal((n, d)) + shift
def mixed(n, d, shift=0.0, seed=5):
    "correlated features with a spectrum that decays"
    a = np.random.default_rng(seed).standard_normal((d, d)) * np.geomspace(1, 1e-3, d)
    return normal(n, d) @ a + shift
copied = normal(260, 48)
whole = lambda n: rng.integers(0, 3, (n, 6)).astype(float)
cases = {
    "more rows than features": (normal(600, 24), normal(500, 24, 0.2) * 1.1),
    "fewer rows than features": (normal(90, 200), normal(110, 200, 0.1)),
    "one of them fewer": (normal(700, 600), normal(100, 600, 0.1)),
    "correlated": (mixed(500, 64), mixed(700, 64, 0.1)),
    "one distribution": (normal(800, 16), normal(800, 16)),
    "far from zero": (normal(400, 32, 300), normal(350, 32, 300.1)),
    "copied rows": (np.concatenate([copied, copied[:140]]), np.concatenate([copied[:150] , normal(150, 48, 0.1)])),
    "whole numbers": (whole(400), np.concatenate([whole(150), whole(100)[rng.integers(0, 100, 200)]])),
    "a feature that is constant": (np.hstack([normal(300, 12), np.ones((300, 1))]), np.hstack([normal(300, 12, 0.1), np.ones((300, 1))])),
}
# Products leave equal rows a distance apart. Distances are torch-fidelity's and prdc's own functions here, without products.
torch.cdist = functools.partial(torch.cdist, compute_mode="donot_use_mm_for_euclid_dist")
import prdc.prdc as p
p.compute_pairwise_distance = lambda x, y=None: torch.cdist(torch.tensor(x), torch.tensor(x if y is None else y)).numpy()

arrays, scores = {}, {}
for name, pair in cases.items():
    real, fake = (x.astype(np.float32) for x in pair)
    arrays[f"real.{name}"], arrays[f"fake.{name}"] = real, fake
    real, fake = real.astype(np.float64), fake.astype(np.float64)
    r, f = torch.tensor(real), torch.tensor(fake)
    s = scores[name] = {}
    stats = [metric_fid.fid_features_to_statistics(t) for t in (f, r)]
    s["fid"] = metric_fid.fid_statistics_to_metric(*stats, False)[metric_fid.KEY_METRIC_FID]
    a, b = stats[0]["sigma"], stats[1]["sigma"]
    root = scipy.linalg.sqrtm(a @ b)
    s["fid_scipy"] = ((stats[0]["mu"] - stats[1]["mu"]) ** 2).sum() + np.trace(a + b - 2 * root.real)
    size = min(len(real), len(fake)) * 3 // 4
    kid = metric_kid.kid_features_to_metric(f, r, kid_subsets=20, kid_subset_size=size, rng_seed=2020, verbose=False)
    s["kid"], s["kid_std"] = kid[metric_kid.KEY_METRIC_KID_MEAN], kid[metric_kid.KEY_METRIC_KID_STD]
    state = np.random.RandomState(2020)
    draws = [[state.choice(len(x), size, replace=False) for x in (fake, real)] for _ in range(20)]
    arrays[f"draws.{name}"] = np.array(draws).astype(np.int64)
    s |= metric_prc.prc_features_to_metric(f, r, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    with contextlib.redirect_stdout(io.StringIO()):
        s |= {k: v for k, v in compute_prdc(real, fake, 5).items() if k in ("density", "coverage")}
    s["nearest"] = torch.cdist(f, r).min(dim=1).values.tolist()
save_file(arrays, "arrays.safetensors")
json.dump(scores, open("scores.json", "w"), default=float)
"#;

/// Relative tolerance of every comparison with a reference.
const TOLERANCE: f64 = 1e-4;

fn draws_of(t: &Tensor) -> Vec<Draw> {
    let rows = |s: i64, i: i64| Vec::<i64>::try_from(t.get(s).get(i)).unwrap();
    (0..t.size()[0]).map(|s| [rows(s, 1), rows(s, 0)]).collect()
}

#[test]
fn scores_equal_those_of_torch_fidelity_prdc_and_scipy() {
    let Some(python) = python::scores() else { return };
    let dir = tempfile::tempdir().unwrap();
    python::run(&python, REFERENCES, dir.path());
    let arrays: HashMap<_, _> =
        Tensor::read_safetensors(dir.path().join("arrays.safetensors")).unwrap().into_iter().collect();
    let scores = std::fs::read_to_string(dir.path().join("scores.json")).unwrap();
    let scores: HashMap<String, Value> = serde_json::from_str(&scores).unwrap();
    assert_eq!(scores.len(), 9);
    for (case, wanted) in &scores {
        let of = |what: &str| &arrays[&format!("{what}.{case}")];
        let (real, fake) = (of("real"), of("fake"));
        let near = |what: &str, got: f64| {
            let want = wanted[what].as_f64().unwrap();
            assert!((got - want).abs() <= TOLERANCE * want.abs(), "{case}: {what} is {got}, {want} by the reference");
        };
        let fid = frechet::distance(&Statistics::of(real).unwrap(), &Statistics::of(fake).unwrap()).unwrap();
        near("fid", fid);
        near("fid_scipy", fid);
        let kid = kernel_distance::distance_over(real, fake, &draws_of(of("draws"))).unwrap();
        near("kid", kid.mean);
        near("kid_std", kid.std);
        let manifold = manifold_scores(real, fake).unwrap();
        near("precision", manifold.precision);
        near("recall", manifold.recall);
        near("density", manifold.density);
        near("coverage", manifold.coverage);
        let nearest = neighbours::nearest(real, fake).unwrap();
        for (i, want) in wanted["nearest"].as_array().unwrap().iter().enumerate() {
            let (got, want) = (nearest.distance[i], want.as_f64().unwrap());
            assert!(
                (got - want).abs() <= TOLERANCE * want,
                "{case}: row {i} is {got} from its neighbour, {want} by torch"
            );
            let apart = real.get(nearest.index[i] as i64) - fake.get(i as i64);
            let apart = apart.to_kind(Kind::Double).norm().double_value(&[]);
            assert!((got - apart).abs() <= 1e-6 * got, "{case}: row {i}: its neighbour is {apart} away, not {got}");
        }
    }
}

fn tensor(rows: &[Vec<f32>]) -> Tensor {
    Tensor::from_slice(&rows.concat()).reshape([rows.len() as i64, rows[0].len() as i64])
}

/// Images of a data set of `modes` classes, as features of 16 dimensions: far apart, with a spread of 1 in each.
fn images(rng: &mut Rng, n: usize, modes: usize) -> Vec<Vec<f32>> {
    let row = |_| {
        let mut means = Rng::new(1000 + rng.below(modes as u64));
        (0..16).map(|_| means.range(-4.0, 4.0)).map(|mean| mean + rng.normal()).collect()
    };
    (0..n).map(row).collect()
}

fn fid(real: &Tensor, fake: &Tensor) -> f64 {
    frechet::distance(&Statistics::of(real).unwrap(), &Statistics::of(fake).unwrap()).unwrap()
}

fn kept(mean: &[f64], covariance: &[f64]) -> Statistics {
    let d = mean.len() as i64;
    let covariance = Tensor::from_slice(covariance).reshape([d, d]);
    Statistics::restore(1000, &Tensor::from_slice(mean), &covariance).unwrap()
}

#[test]
fn the_frechet_distance_of_known_gaussians_is_their_closed_form() {
    let identity = [1.0, 0.0, 0.0, 1.0];
    // Means that differ by d: d².
    let d2 = frechet::distance(&kept(&[1.0, 2.0], &identity), &kept(&[4.0, -2.0], &identity)).unwrap();
    assert!((d2 - 25.0).abs() < 1e-12, "{d2}");
    // Diagonal: the sum of (√a − √b)².
    let d2 = frechet::distance(&kept(&[0.0; 2], &[9.0, 0.0, 0.0, 4.0]), &kept(&[0.0; 2], &[1.0, 0.0, 0.0, 16.0]));
    assert!((d2.unwrap() - 8.0).abs() < 1e-12);
    // Of rank 1, S₁ = v vᵀ and S₂ = w wᵀ: ‖v‖² + ‖w‖² − 2 |v·w|.
    let (v, w) = ([3.0, 0.0, 4.0], [1.0, 2.0, 2.0]);
    let outer = |v: &[f64]| v.iter().flat_map(|a| v.iter().map(move |b| a * b)).collect::<Vec<_>>();
    let d2 = frechet::distance(&kept(&[0.0; 3], &outer(&v)), &kept(&[0.0; 3], &outer(&w))).unwrap();
    assert!((d2 - (25.0 + 9.0 - 22.0)).abs() < 1e-12, "{d2}");
    // Spread in directions that the other lacks, in a basis that is not the axes': both traces.
    tch::manual_seed(1);
    let basis = Tensor::randn([60, 60], (Kind::Double, tch::Device::Cpu)).linalg_eigh("L").1;
    let project = |start| {
        let part = basis.narrow(1, start, 30);
        Statistics::restore(1000, &Tensor::zeros([60], (Kind::Double, tch::Device::Cpu)), &part.matmul(&part.tr()))
            .unwrap()
    };
    let d2 = frechet::distance(&project(0), &project(30)).unwrap();
    assert!((d2 - 60.0).abs() < 1e-10, "{d2}");
    // No spread at all.
    let d2 = frechet::distance(&kept(&[0.0; 2], &[0.0; 4]), &kept(&[0.0, 1.0], &identity)).unwrap();
    assert!((d2 - 3.0).abs() < 1e-12, "{d2}");
}

#[test]
fn a_set_is_at_no_distance_from_itself_whatever_its_rank() {
    let mut rng = Rng::new(4);
    for (n, d) in [(2, 40), (30, 40), (41, 40), (400, 40)] {
        let x = tensor(&(0..n).map(|_| (0..d).map(|_| 100.0 + 10.0 * rng.normal()).collect()).collect::<Vec<_>>());
        let far = Tensor::cat(&[&x, &x], 1); // half the rank
        for x in [x, far] {
            let d2 = fid(&x, &x);
            assert!((0.0..1e-8).contains(&d2), "{n} rows of {:?}: {d2}", x.size());
        }
    }
}

#[test]
fn statistics_are_the_same_in_one_batch_and_in_many() {
    let mut rng = Rng::new(5);
    let x =
        tensor(&(0..9000).map(|i| (0..3).map(|_| 1e4 + i as f32 / 9e3 + rng.normal()).collect()).collect::<Vec<_>>());
    let whole = Statistics::of(&x).unwrap();
    let mut parts = Statistics::new(3).unwrap();
    for (start, len) in [(0, 1), (1, 0), (1, 4999), (5000, 4000)] {
        parts.add(&x.narrow(0, start, len)).unwrap();
    }
    let exact = x.to_kind(Kind::Double);
    let moved = &exact - exact.mean_dim(0i64, false, None);
    let want = moved.tr().matmul(&moved) / 8999.0;
    for statistics in [&whole, &parts] {
        assert_eq!(statistics.count(), 9000);
        let error = (statistics.covariance().unwrap() - &want).abs().max().double_value(&[]);
        assert!(error < 1e-10, "{error}");
    }
    let again = Statistics::restore(9000, parts.mean(), &parts.covariance().unwrap()).unwrap();
    assert!(frechet::distance(&again, &whole).unwrap() < 1e-10);
}

#[test]
fn scores_worsen_in_order() {
    let mut rng = Rng::new(1);
    let real = tensor(&images(&mut rng, 600, 8));
    let mut noisy = |sigma: f32| {
        let mut rows = images(&mut rng, 600, 8);
        rows.iter_mut().flatten().for_each(|v| *v += sigma * rng.normal());
        tensor(&rows)
    };
    let noise: Vec<Tensor> = [0.0, 0.5, 1.0, 2.0].into_iter().map(&mut noisy).collect();
    let modes: Vec<Tensor> = [8, 6, 4, 2].map(|modes| tensor(&images(&mut Rng::new(2), 600, modes))).into();
    let distinct = images(&mut Rng::new(3), 600, 8);
    let copies = [600, 150, 40, 16].map(|n| tensor(&(0..600).map(|i| distinct[i % n].clone()).collect::<Vec<_>>()));
    // What is blind to a fault is left out: noise hides in the wide balls of noisy images (recall), and what a model leaves out
    // cannot be seen in what it makes (precision, density); of four copies each ball has radius 0 (recall).
    check("noise", &noise, &real, &["precision", "density", "coverage"]);
    check("modes", &modes, &real, &["recall", "coverage"]);
    check("copies", &copies, &real, &["coverage"]);

    fn check(what: &str, fakes: &[Tensor], real: &Tensor, falling: &[&str]) {
        let kid = |fake| kernel_distance::distance(real, fake, 1).unwrap();
        let scores: Vec<_> =
            fakes.iter().map(|fake| (fid(real, fake), kid(fake), manifold_scores(real, fake).unwrap())).collect();
        for pair in scores.windows(2) {
            assert!(pair[0].0 < pair[1].0 && pair[0].1.mean < pair[1].1.mean, "{what}: {scores:?}");
            for name in falling {
                assert!(of(&pair[0].2, name) > of(&pair[1].2, name), "{what}, {name}: {scores:?}");
            }
        }
        // Without a fault, the scores are near what one distribution gives.
        let (_, kid, best) = scores[0];
        assert!(kid.mean.abs() < 2.0 * kid.standard_error, "{what}: {scores:?}");
        assert!(best.precision > 0.7 && best.recall > 0.7 && best.coverage > 0.9, "{what}: {scores:?}");
        assert!((best.density - 1.0).abs() < 0.15, "{what}: {scores:?}");
    }
    fn of(scores: &ManifoldScores, name: &str) -> f64 {
        match name {
            "precision" => scores.precision,
            "recall" => scores.recall,
            "density" => scores.density,
            _ => scores.coverage,
        }
    }
}

#[test]
fn distances_bear_any_scale_and_any_mean() {
    let mut rng = Rng::new(6);
    let [real, fake] = [300, 200].map(|n| tensor(&images(&mut rng, n, 5)));
    let want = manifold_scores(&real, &fake).unwrap();
    for scale in [2f64.powi(100), 2f64.powi(-100)] {
        assert_eq!(manifold_scores(&(&real * scale), &(&fake * scale)).unwrap(), want);
    }
    // Whole numbers stay the same numbers with a mean that leaves float32 products no digit.
    let [real, fake] = [real, fake].map(|x| x.round());
    let want = manifold_scores(&real, &fake).unwrap();
    assert_eq!(manifold_scores(&(&real + 1e6), &(&fake + 1e6)).unwrap(), want);
    // All features alike: every distance is 0, within (≤) every ball but not inside (<) it.
    let same = manifold_scores(
        &Tensor::ones([50, 7], (Kind::Float, tch::Device::Cpu)),
        &Tensor::ones([60, 7], (Kind::Float, tch::Device::Cpu)),
    );
    assert_eq!(same.unwrap(), ManifoldScores { precision: 1.0, recall: 1.0, density: 0.0, coverage: 0.0 });
}

#[test]
fn subsets_are_drawn_without_repetition_from_the_seed() {
    let draws = kernel_distance::draws(5000, 1500, 3);
    assert_eq!(draws.len(), SUBSETS);
    for (rows, n) in draws.iter().flat_map(|draw| draw.iter().zip([5000, 1500])) {
        let mut sorted = rows.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert!(sorted.len() == 1000 && sorted[0] >= 0 && sorted[999] < n);
    }
    assert!(draws[0] != draws[1] && draws[0][0] != draws[0][1]);
    assert_eq!(draws, kernel_distance::draws(5000, 1500, 3));
    assert_ne!(draws, kernel_distance::draws(5000, 1500, 4));
    // Each row as often as another: 100 · 1000 / 1500 times, give or take five standard deviations.
    let mut times = [0; 1500];
    draws.iter().flat_map(|draw| &draw[1]).for_each(|r| times[*r as usize] += 1);
    assert!(times.iter().all(|t| (43..90).contains(t)), "{times:?}");
    // Small sets: the subset is the smaller set, and one is enough where it is both.
    assert!(kernel_distance::draws(300, 200, 1).iter().all(|draw| draw[0].len() == 200 && draw[1].len() == 200));
    assert_eq!(kernel_distance::draws(200, 200, 1).len(), 1);
}

/// Of many pairs of sets, the kernel distances spread as the standard error says.
#[test]
fn the_standard_error_of_the_kernel_distance_is_its_spread() {
    let mut rng = Rng::new(8);
    for (n, m) in [(150, 150), (400, 100)] {
        let mut one = |_| {
            let real = tensor(&images(&mut rng, n, 4));
            let fake = tensor(&images(&mut rng, m, 3));
            kernel_distance::distance(&real, &fake, 1).unwrap()
        };
        let scores: Vec<_> = (0..120).map(&mut one).collect();
        let count = scores.len() as f64;
        let mean = scores.iter().map(|s| s.mean).sum::<f64>() / count;
        let spread = (scores.iter().map(|s| (s.mean - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt();
        let told = scores.iter().map(|s| s.standard_error).sum::<f64>() / count;
        assert!((0.75..1.35).contains(&(told / spread)), "{n} and {m} images: told {told}, found {spread}");
    }
}

#[test]
fn copying_is_flagged_and_likeness_is_not() {
    let mut rng = Rng::new(9);
    let [training, held_out, fresh] = [2000, 500, 800].map(|n| images(&mut rng, n, 8));
    let judge = |fake: &[Vec<f32>], held_out: &[Vec<f32>]| -> (Nearest, Memorisation) {
        let training = tensor(&training);
        let near = |x: &[Vec<f32>]| neighbours::nearest(&training, &tensor(x)).unwrap();
        let (fake, held_out) = (near(fake), near(held_out));
        let judged = neighbours::memorisation(&fake, &held_out).unwrap();
        (fake, judged)
    };
    let (_, honest) = judge(&fresh, &held_out);
    assert!(!honest.flagged && honest.share < 0.03 && honest.held_out_share == 0.01, "{honest:?}");
    // One image in twenty is a training image, and nearly so.
    for noise in [0.0, 0.05] {
        let mut copied = fresh.clone();
        (0..40).for_each(|i| copied[i] = training[7 * i].iter().map(|v| v + noise * rng.normal()).collect());
        let (near, judged) = judge(&copied, &held_out);
        assert!(judged.flagged && judged.share >= 0.05, "{judged:?}");
        assert!((0..40).all(|i| near.index[i] == 7 * i && (noise > 0.0 || near.distance[i] == 0.0)));
    }
    // Data that repeat themselves: held-out images are copies as well.
    let repeats: Vec<_> = (0..500).map(|i| training[3 * i].clone()).collect();
    let (_, judged) = judge(&repeats, &repeats);
    assert!(!judged.flagged && judged.held_out_share == 1.0, "{judged:?}");
}

#[test]
fn wrong_features_are_refused_in_one_sentence() {
    let mut rng = Rng::new(10);
    let good = tensor(&images(&mut rng, 20, 2));
    let mut holed = images(&mut rng, 20, 2);
    holed[3][4] = f32::NAN;
    let refused = |bad: &Tensor, part: &str| {
        let results = [
            manifold_scores(&good, bad).map(|_| ()),
            kernel_distance::distance(&good, bad, 1).map(|_| ()),
            neighbours::nearest(&good, bad).map(|_| ()),
            Statistics::of(&good).and_then(|mut s| s.add(bad)),
        ];
        for result in results {
            let said = format!("{:#}", result.expect_err(part));
            assert!(
                said.contains(part) && said.contains("wanted") && !said.contains('\n'),
                "{part:?} is not in: {said}"
            );
        }
    };
    refused(&tensor(&holed), "hold NaN in row 3, column 4");
    refused(&(&good * f64::INFINITY), "hold");
    refused(&good.narrow(1, 0, 5), "columns");
    refused(&good.to_kind(Kind::Double), "Double [20, 16]");
    refused(&good.flatten(0, 1), "Float [320]");
    refused(&good.narrow(1, 0, 0), "Float [20, 0]");
    let few = good.narrow(0, 0, 1);
    let said = [
        manifold_scores(&good, &few).unwrap_err(),
        kernel_distance::distance(&good, &few, 1).unwrap_err(),
        frechet::distance(&Statistics::of(&good).unwrap(), &Statistics::of(&few).unwrap()).unwrap_err(),
    ];
    for (said, part) in said.iter().zip(["at least 6", "at least 2", "at least 2"]) {
        assert!(said.to_string().contains(part), "{said}");
    }
    let said = kernel_distance::distance_over(&good, &good, &[[vec![0, 20], vec![0, 1]]]).unwrap_err();
    assert!(said.to_string().contains("draw all subsets"), "{said}");
    let other = kept(&[0.0; 2], &[1.0, 0.0, 0.0, 1.0]);
    let said = frechet::distance(&Statistics::of(&good).unwrap(), &other).unwrap_err();
    assert!(said.to_string().contains("one set has 16 features and the other 2"), "{said}");
}

/// Times both programs on the same features, and tells the memory: `GANVAE_SCORES=10000x512 cargo test --release --test
/// sample_scores -- --ignored --nocapture`. GANVAE_ALONE leaves torch-fidelity and prdc out.
#[test]
#[ignore = "a measurement"]
fn side_by_side() {
    let size = std::env::var("GANVAE_SCORES").unwrap_or("10000x512".into());
    let (n, d) = size.split_once('x').unwrap();
    let shape = [n.parse::<i64>().unwrap(), d.parse().unwrap()];
    tch::manual_seed(1);
    let options = (Kind::Float, tch::Device::Cpu);
    // Of 20 directions that matter, as features have, and noise in the others; non-negative.
    let basis = Tensor::randn([20, shape[1]], options);
    let features = |scale: f64| {
        let mut x = Tensor::randn([shape[0], 20], options).matmul(&(&basis * scale));
        let _ = x.g_add_(&(Tensor::randn(shape, options) * 0.5));
        x.relu_()
    };
    let (real, fake) = (features(0.3), features(0.32));
    let time = |what: &str, f: &mut dyn FnMut()| {
        let (start, cpu) = (Instant::now(), processor_s());
        f();
        println!(
            "ganvae {size} {what}: {:.2} s, processor {:.2} s",
            start.elapsed().as_secs_f64(),
            processor_s() - cpu
        );
    };
    time("frechet", &mut || println!("{}", fid(&real, &fake)));
    time("kernel distance", &mut || println!("{:?}", kernel_distance::distance(&real, &fake, 1).unwrap()));
    time("manifold", &mut || println!("{:?}", manifold_scores(&real, &fake).unwrap()));
    time("nearest", &mut || println!("{:?}", neighbours::nearest(&real, &fake).unwrap().distance.len()));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    let (Some(python), false) = (python::scores(), std::env::var("GANVAE_ALONE").is_ok()) else { return };
    let dir = tempfile::tempdir().unwrap();
    Tensor::write_safetensors(&[("real", &real), ("fake", &fake)], dir.path().join("arrays.safetensors")).unwrap();
    python::run(&python, TIMES, dir.path());
    println!("{}", std::fs::read_to_string(dir.path().join("times")).unwrap());
}

/// Processor time of this process, in seconds.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

const TIMES: &str = r#"
import time, resource
from safetensors.torch import load_file
from torch_fidelity import metric_fid, metric_kid, metric_prc
from prdc import compute_prdc
t = load_file("arrays.safetensors")
f, r = t["fake"], t["real"]
out = open("times", "w")
def timed(what, call):
    start, cpu = time.time(), time.process_time()
    value = call()
    print(f"{what}: {time.time() - start:.2f} s, processor {time.process_time() - cpu:.2f} s\n{value}", file=out)
s = metric_fid.fid_features_to_statistics
timed("torch-fidelity fid", lambda: metric_fid.fid_statistics_to_metric(s(f), s(r), False))
timed("torch-fidelity kid", lambda: metric_kid.kid_features_to_metric(f, r, kid_subsets=100, kid_subset_size=1000, rng_seed=2020, verbose=False))
timed("torch-fidelity prc", lambda: metric_prc.prc_features_to_metric(f, r, prc_neighborhood=3, prc_batch_size=10000, save_cpu_ram=False, verbose=False))
timed("prdc", lambda: compute_prdc(r.numpy(), f.numpy(), 5))
print(f"peak {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss} kB", file=out)
"#;
