//! Normalisation by quadrature and by sums, numbers far out, what is refused. The values and gradients against PyTorch's are in
//! tests/golden.rs.

use super::*;
use crate::models::network::Network;
use crate::nets::graph::{Init, Port};
use tch::Device;

/// A likelihood of one grey pixel, in a network that gives its parameters [P,1,1] unchanged.
fn of_one_pixel(likelihood: Likelihood) -> (Network, PixelModel) {
    Network::new("decoder", Device::Cpu, Init::PyTorch, |b| {
        let parameters = b.input(Port::new("z", &[likelihood.parameters(), 1, 1], "parameters"))?;
        let (pixels, mean) = likelihood.build(b, parameters)?;
        b.output(Port::images("x", &[1, 1, 1], "means"), mean)?;
        Ok(pixels)
    })
    .unwrap()
}

/// p(x) for each x, with these parameters, in float64.
fn densities(likelihood: Likelihood, parameters: &[f32], x: &Tensor) -> Tensor {
    let (_, pixels) = of_one_pixel(likelihood);
    let n = x.numel() as i64;
    let parameters =
        Tensor::from_slice(parameters).view([1, -1, 1, 1]).expand([n, -1, 1, 1], false).to_kind(Kind::Double);
    let x = x.to_kind(Kind::Double).view([n, 1, 1, 1]);
    let (each, _) = tch::no_grad(|| pixels.pixels(&parameters, &x, Mode::Eval)).unwrap();
    each.neg().exp().flatten(0, -1)
}

/// ∫ p dx from `lo` to `hi`, and ∫ x p dx, by Simpson's rule.
fn integrals(likelihood: Likelihood, parameters: &[f32], lo: f64, hi: f64) -> (f64, f64) {
    let n = 100_000;
    let x = Tensor::linspace(lo, hi, n + 1, (Kind::Double, Device::Cpu));
    let w: Vec<f64> = (0..=n).map(|i| if i == 0 || i == n { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 }).collect();
    let p = densities(likelihood, parameters, &x) * Tensor::from_slice(&w) * ((hi - lo) / n as f64 / 3.0);
    (p.sum(Kind::Double).double_value(&[]), (&p * &x).sum(Kind::Double).double_value(&[]))
}

fn mean(likelihood: Likelihood, parameters: &[f32]) -> f64 {
    let (network, _) = of_one_pixel(likelihood);
    let x = network.graph.evaluate(&[&Tensor::from_slice(parameters).view([1, -1, 1, 1])]).unwrap();
    x[0].double_value(&[0, 0, 0, 0])
}

#[test]
fn densities_integrate_to_one_and_the_image_is_their_mean() {
    for sigma in [0.05, 1.0] {
        let likelihood = Likelihood::Gaussian(Sigma::Fixed(sigma));
        for l in [-3.0, 0.4] {
            let (sum, first) = integrals(likelihood, &[l], -12.0 * sigma, 1.0 + 12.0 * sigma);
            assert!((sum - 1.0).abs() < 1e-6, "σ {sigma}, {l}: {sum}");
            assert!((first - mean(likelihood, &[l])).abs() < 1e-6);
        }
    }
    // Across the seam of the series at ½ and at both ends.
    let likelihood = Likelihood::ContinuousBernoulli;
    for l in [-40.0, -3.0, -0.5001, -0.4999, -1e-3, 0.0, 1e-6, 0.4999, 0.5001, 7.0, 60.0] {
        let (sum, first) = integrals(likelihood, &[l], 0.0, 1.0);
        assert!((sum - 1.0).abs() < 1e-6, "logit {l}: {sum}");
        let mean = mean(likelihood, &[l]);
        assert!((first - mean).abs() < 1e-6, "logit {l}: {first}, not {mean}");
    }
}

#[test]
fn probabilities_of_levels_sum_to_one() {
    let levels = Tensor::arange(256, (Kind::Double, Device::Cpu)) / 255.0;
    for parameters in [[0.0, 0.0], [-6.0, -3.0], [2.0, -5.0], [9.0, -6.9], [0.3, -50.0], [-1.0, 4.0]] {
        let p = densities(Likelihood::Logistic, &parameters, &levels);
        let sum = p.sum(Kind::Double).double_value(&[]);
        assert!((sum - 1.0).abs() < 1e-9, "{parameters:?}: {sum}");
        // The image is the location: the likeliest level is near it.
        let likeliest = p.argmax(None, false).int64_value(&[]) as f64 / 255.0;
        let location = 1.0 / (1.0 + f64::from(-parameters[0]).exp());
        assert!((mean(Likelihood::Logistic, &parameters) - location).abs() < 1e-6);
        assert!(parameters[1] > -2.0 || (likeliest - location).abs() < 0.01, "{parameters:?}: {likeliest}");
    }
    for binarize in [Binarize::None, Binarize::Dynamic] {
        let two = densities(Likelihood::Bernoulli(binarize), &[1.5], &Tensor::from_slice(&[0.0, 1.0]));
        assert!((two.sum(Kind::Double).double_value(&[]) - 1.0).abs() < 1e-12);
    }
}

/// In float32, with its gradient.
#[test]
fn numbers_far_out_are_finite() {
    for likelihood in [Likelihood::ContinuousBernoulli, Likelihood::Logistic, Likelihood::Gaussian(Sigma::Learned)] {
        let (_, pixels) = of_one_pixel(likelihood);
        for (l, x) in [(-300.0, 1.0), (300.0, 0.0), (0.0, 0.5), (80.0, 1.0)] {
            let parameters = vec![l; likelihood.parameters() as usize];
            let parameters = Tensor::from_slice::<f32>(&parameters).view([1, -1, 1, 1]).set_requires_grad(true);
            let x = Tensor::from_slice::<f32>(&[x]).view([1, 1, 1, 1]);
            let (nll, _) = pixels.nll(&parameters, &x, Mode::Train).unwrap();
            let grad = &Tensor::run_backward(&[&nll], &[&parameters], false, false)[0];
            for t in [&nll, grad] {
                assert!(t.isfinite().all().int64_value(&[]) == 1, "{likelihood:?} at {l}, {x:?}: {t}");
            }
        }
    }
}

/// The optimal σ is the batch's in training and the average of all batches in evaluation.
#[test]
fn an_optimal_sigma_is_averaged_for_evaluation() {
    let (_, pixels) = of_one_pixel(Likelihood::Gaussian(Sigma::Optimal));
    let sigma = |x: &[f32], mode| {
        let n = x.len() as i64;
        let nll = pixels.nll(
            &Tensor::zeros([n, 1, 1, 1], (Kind::Float, Device::Cpu)),
            &Tensor::from_slice(x).view([n, 1, 1, 1]),
            mode,
        );
        nll.unwrap().1.unwrap().double_value(&[])
    };
    assert_eq!(sigma(&[0.5], Mode::Eval), 1.0, "before the first update");
    // Means of ½: errors of ½ and 0; then of 0.1.
    assert!((sigma(&[1.0, 0.5], Mode::Train) - 0.125f64.sqrt()).abs() < 1e-6);
    assert!((sigma(&[0.9], Mode::Eval) - 0.125f64.sqrt()).abs() < 1e-3);
    assert!((sigma(&[0.6], Mode::Train) - 0.1).abs() < 1e-6);
    let want = ((0.99 * 0.125 + 0.01) / 1.99f64).sqrt();
    assert!((sigma(&[0.9], Mode::Eval) - want).abs() < 1e-3, "the older one counts a little less");
    assert!((sigma(&[0.5], Mode::Train) - (-6f64).exp()).abs() < 1e-6, "not 0");
}

#[test]
fn pixels_are_white_as_often_as_they_are_bright() {
    let x = Tensor::from_slice(&[0f32, 0.25, 0.75, 1.0]).expand([20_000, 4], false);
    let uniform = native::random(3, &[20_000, 4], native::Distribution::Uniform).unwrap();
    let drawn = bernoulli::binarised(&x, &uniform).unwrap();
    assert_eq!(drawn.square(), drawn, "0 or 1");
    let means = Vec::<f32>::try_from(drawn.mean_dim(0, false, Kind::Float)).unwrap();
    assert!(means[0] == 0.0 && means[3] == 1.0, "{means:?}");
    assert!((means[1] - 0.25).abs() < 0.02 && (means[2] - 0.75).abs() < 0.02, "{means:?}");
}

#[test]
fn grey_images_of_two_tones_are_bernoulli_and_others_gaussian() {
    let of = |channels, extreme| Likelihood::for_images(Shape { channels, height: 8, width: 8 }, extreme).0;
    assert_eq!(of(1, 0.9), LikelihoodName::Bernoulli);
    assert_eq!(of(1, 0.5), LikelihoodName::Gaussian);
    assert_eq!([of(3, 0.99), of(4, 0.1)], [LikelihoodName::Gaussian; 2]);
}
