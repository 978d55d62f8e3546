//! The lower limit of a step: its products and convolutions alone, each by the fastest implementation.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::{gpu, spread};
use crate::native::{self, ConvSpec};
use crate::nets::cost::{MatmulOp, Pass, Work};

/// An implementation of a piece of work.
type Implementation = Box<dyn Fn() -> Result<Tensor>>;

/// Milliseconds of all `work` run back to back, each piece by its fastest implementation on tensors of this kind: on a CPU with as many
/// threads as the step, on a GPU as one captured launch.
pub(super) fn limit_ms(work: &[Work], options: (Kind, Device)) -> Result<f64> {
    let device = options.1;
    tch::no_grad(|| {
        let mut chosen: Vec<Implementation> = Vec::new();
        for piece in work {
            let mut best: Option<(f64, Implementation)> = None;
            for candidate in implementations(piece, options)? {
                let ms = least_ms(&candidate, device)?;
                if best.as_ref().is_none_or(|(least, _)| ms < *least) {
                    best = Some((ms, candidate));
                }
            }
            chosen.extend(best.map(|(_, fastest)| fastest));
        }
        let all = || chosen.iter().try_for_each(|run| run().map(|out| drop(black_box(out))));
        if device.is_cuda() {
            return replayed_ms(all, device);
        }
        let mut rounds = Vec::new();
        let began = Instant::now();
        while rounds.len() < 5 || (began.elapsed().as_secs_f64() < 1.0 && rounds.len() < 200) {
            let round = Instant::now();
            all()?;
            rounds.push(round.elapsed().as_secs_f64() * 1e3);
        }
        Ok(spread(rounds).0)
    })
}

/// Milliseconds on the device of `work` as one captured launch, many queued: for small work, the host takes longer for a launch.
fn replayed_ms(work: impl Fn() -> Result<()>, device: Device) -> Result<f64> {
    let cuda = native::cuda()?;
    let graph = cuda.capture(work)?;
    graph.replay()?;
    let begun = cuda.record()?;
    graph.replay()?;
    let about_ms = begun.ms_until(&cuda.record()?)?;
    let round = |_| gpu::queued_ms(cuda, device, (about_ms, gpu::MOST_CAPTURED), || graph.replay());
    Ok(spread((0..3).map(round).collect::<Result<Vec<_>>>()?).0)
}

/// Milliseconds of the fastest of five runs, after one to warm up.
fn least_ms(run: &Implementation, device: Device) -> Result<f64> {
    let wait = || if device.is_cuda() { native::cuda()?.synchronize() } else { Ok(()) };
    black_box(&run()?);
    let mut least = f64::INFINITY;
    for _ in 0..5 {
        wait()?;
        let began = Instant::now();
        black_box(&run()?);
        wait()?;
        least = least.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(least)
}

/// Every implementation of a piece of work, on random numbers.
fn implementations(work: &Work, (kind, device): (Kind, Device)) -> Result<Vec<Implementation>> {
    let b = work.batch;
    let random =
        |shape: &[i64]| -> Result<Tensor> { Ok(Tensor::f_rand(shape, (Kind::Float, device))?.f_to_kind(kind)?) };
    let cpu = device == Device::Cpu;
    match work.op {
        MatmulOp::Linear { rows, from, to } => {
            let b = b * rows;
            let (x, w, g) = (random(&[b, from])?, random(&[to, from])?, random(&[b, to])?);
            let by = |products| -> Implementation {
                let [x, w, g] = [&x, &w, &g].map(Tensor::shallow_clone);
                match work.pass {
                    Pass::Forward if cpu => Box::new(move || native::linear(&x, &w, None, 1.0, products)),
                    Pass::Forward => Box::new(move || Ok(x.f_linear::<Tensor>(&w, None)?)),
                    pass => Box::new(move || native::linear_gradient(&g, &x, &w, pass == Pass::Input, products)),
                }
            };
            let products = [native::MatmulBackend::Blas, native::MatmulBackend::BySize];
            Ok(products.into_iter().take(if cpu { 2 } else { 1 }).map(by).collect())
        }
        MatmulOp::Conv { from, to, height, width, spec } => {
            let ConvSpec { kernel, stride, padding, groups, transposed, .. } = spec;
            let weights = if transposed { [from, to / groups] } else { [to, from / groups] };
            let (x, w) = (random(&[b, from, height, width])?, random(&[weights[0], weights[1], kernel, kernel])?);
            let g = spec.apply(&x, &w, None)?;
            let mut all: Vec<Implementation> = Vec::new();
            for channels_last in [false, true] {
                let lay = |t: &Tensor| if channels_last { native::channels_last(t) } else { Ok(t.shallow_clone()) };
                let (x, w, g) = (lay(&x)?, if w.size()[1] > 1 { lay(&w)? } else { w.shallow_clone() }, lay(&g)?);
                all.push(match work.pass {
                    Pass::Forward => Box::new(move || spec.apply(&x, &w, None)),
                    pass => Box::new(move || native::conv_gradient(&g, &x, &w, spec, pass == Pass::Input)),
                });
            }
            // ganvae's own kernel for few output channels: a transposed convolution, forward or as a gradient.
            let own = cpu && (kernel, stride, padding, groups) == (4, 2, 1, 1);
            match work.pass {
                Pass::Forward if own && transposed => {
                    let x = native::channels_last(&x)?;
                    all.push(Box::new(move || native::strided(&x, &w, None, true, 1.0)));
                }
                Pass::Input if own && !transposed => {
                    let g = native::channels_last(&g)?;
                    all.push(Box::new(move || native::strided(&g, &w, None, true, 1.0)));
                }
                _ => {}
            }
            Ok(all)
        }
        MatmulOp::MatMul { batch, m, k, n } => {
            let b = b * batch;
            let [x, y] = match work.pass {
                Pass::Forward => [[b, m, k], [b, k, n]],
                Pass::Input => [[b, m, n], [b, n, k]],
                Pass::Weights => [[b, k, m], [b, m, n]],
            };
            let (x, y) = (random(&x)?, random(&y)?);
            Ok(vec![Box::new(move || Ok(x.f_bmm(&y)?))])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every implementation of a piece of work gives the same shape, that of the layer or gradient.
    #[test]
    fn implementations_give_the_shape_of_their_work() {
        let linear = MatmulOp::Linear { rows: 1, from: 5, to: 7 };
        let strided = |from, to, height, width, transposed| MatmulOp::Conv {
            from,
            to,
            height,
            width,
            spec: ConvSpec { transposed, ..ConvSpec::halving() },
        };
        let (down, up) = (strided(1, 6, 8, 12, false), strided(6, 3, 4, 6, true));
        for (op, pass, want) in [
            (linear, Pass::Forward, vec![2, 7]),
            (linear, Pass::Input, vec![2, 5]),
            (linear, Pass::Weights, vec![7, 5]),
            (down, Pass::Forward, vec![2, 6, 4, 6]),
            (down, Pass::Input, vec![2, 1, 8, 12]),
            (down, Pass::Weights, vec![6, 1, 4, 4]),
            (up, Pass::Forward, vec![2, 3, 8, 12]),
            (up, Pass::Input, vec![2, 6, 4, 6]),
            (up, Pass::Weights, vec![6, 3, 4, 4]),
        ] {
            let all = implementations(&Work { op, pass, batch: 2 }, (Kind::Float, Device::Cpu)).unwrap();
            assert!(all.len() >= 2);
            for run in all {
                assert_eq!(run().unwrap().size(), want, "{op:?} {pass:?}");
            }
        }
        let flops = |op| Work { op, pass: Pass::Forward, batch: 2 }.flops();
        assert_eq!((flops(linear), flops(down), flops(up)), (140.0, 2.0 * 24.0 * 96.0 * 2.0, 2.0 * 16.0 * 432.0 * 2.0));
    }
}
