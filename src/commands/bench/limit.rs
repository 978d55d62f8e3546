//! What a step cannot do without: its products and convolutions alone, each in the fastest form there is.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::gpu;
use crate::native;
use crate::nets::cost::{Pass, Product, Work};

/// One way to compute a piece of work.
type Way = Box<dyn Fn() -> Result<Tensor>>;

/// Milliseconds of all `work` run back to back, each piece in the fastest way there is, its numbers of this kind: on a CPU by as many
/// threads as the step has, on a GPU as one captured launch.
///
/// # Errors
/// libtorch's.
pub fn limit_ms(work: &[Work], options: (Kind, Device)) -> Result<f64> {
    let mut chosen: Vec<Way> = Vec::new();
    tch::no_grad(|| {
        for piece in work {
            let mut best: Option<(f64, Way)> = None;
            for way in ways(piece, options)? {
                let ms = least_ms(&way, 5, options.1)?;
                if best.as_ref().is_none_or(|(least, _)| ms < *least) {
                    best = Some((ms, way));
                }
            }
            chosen.extend(best.map(|(_, way)| way));
        }
        if options.1.is_cuda() {
            return replayed_ms(&chosen, options.1);
        }
        let mut rounds = Vec::new();
        let began = Instant::now();
        while rounds.len() < 5 || (began.elapsed().as_secs_f64() < 1.0 && rounds.len() < 200) {
            let round = Instant::now();
            for way in &chosen {
                black_box(&way()?);
            }
            rounds.push(round.elapsed().as_secs_f64() * 1e3);
        }
        rounds.sort_by(f64::total_cmp);
        Ok(rounds[rounds.len() / 2])
    })
}

/// Milliseconds on the device of all ways as one captured launch, many queued up: for small work, what the host needs for a launch
/// is longer.
fn replayed_ms(ways: &[Way], device: Device) -> Result<f64> {
    let cuda = native::cuda()?;
    let graph = cuda.capture(|| {
        for way in ways {
            black_box(&way()?);
        }
        Ok(())
    })?;
    graph.replay()?;
    let begun = cuda.record()?;
    graph.replay()?;
    let about_ms = begun.ms_until(&cuda.record()?)?;
    let mut rounds = Vec::new();
    for _ in 0..3 {
        rounds.push(gpu::queued_ms(cuda, device, (about_ms, gpu::MOST_CAPTURED), || graph.replay())?);
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[rounds.len() / 2])
}

fn least_ms(way: &Way, times: usize, device: Device) -> Result<f64> {
    let wait = || if device.is_cuda() { native::cuda()?.synchronize() } else { Ok(()) };
    black_box(&way()?);
    let mut least = f64::INFINITY;
    for _ in 0..times {
        wait()?;
        let began = Instant::now();
        black_box(&way()?);
        wait()?;
        least = least.min(began.elapsed().as_secs_f64() * 1e3);
    }
    Ok(least)
}

fn random(shape: &[i64], (kind, device): (Kind, Device)) -> Result<Tensor> {
    Ok(Tensor::f_rand(shape, (Kind::Float, device))?.f_to_kind(kind)?)
}

/// Every way there is to compute a piece of work, on random numbers.
fn ways(work: &Work, options: (Kind, Device)) -> Result<Vec<Way>> {
    let b = work.batch;
    let random = |shape: &[i64]| random(shape, options);
    let cpu = options.1 == Device::Cpu;
    match work.product {
        Product::Linear { rows, from, to } => {
            let b = b * rows;
            let (x, w, g) = (random(&[b, from])?, random(&[to, from])?, random(&[b, to])?);
            let way = |products| -> Way {
                let [x, w, g] = [&x, &w, &g].map(Tensor::shallow_clone);
                match work.pass {
                    Pass::Forward if cpu => Box::new(move || native::linear(&x, &w, None, 1.0, products)),
                    Pass::Forward => Box::new(move || Ok(x.f_linear::<Tensor>(&w, None)?)),
                    pass => Box::new(move || native::linear_gradient(&g, &x, &w, pass == Pass::Input, products)),
                }
            };
            let products = [native::MatmulBackend::Blas, native::MatmulBackend::BySize];
            Ok(products.into_iter().take(if cpu { 2 } else { 1 }).map(way).collect())
        }
        Product::Conv { from, to, height, width, kernel, stride, padding, groups, transposed } => {
            let weights = if transposed { [from, to / groups] } else { [to, from / groups] };
            let (x, w) = (random(&[b, from, height, width])?, random(&[weights[0], weights[1], kernel, kernel])?);
            let conv = move |x: &Tensor, w: &Tensor| -> Result<Tensor> {
                let (stride, padding) = ([stride; 2], [padding; 2]);
                Ok(match transposed {
                    true => x.f_conv_transpose2d::<Tensor>(w, None, stride, padding, [0, 0], groups, [1, 1])?,
                    false => x.f_conv2d::<Tensor>(w, None, stride, padding, [1, 1], groups)?,
                })
            };
            let walk = (stride, padding, groups, transposed);
            let g = conv(&x, &w)?;
            let mut ways: Vec<Way> = Vec::new();
            for last in [false, true] {
                let lay = |t: &Tensor| if last { native::channels_last(t) } else { Ok(t.shallow_clone()) };
                let (x, w, g) = (lay(&x)?, if w.size()[1] > 1 { lay(&w)? } else { w.shallow_clone() }, lay(&g)?);
                ways.push(match work.pass {
                    Pass::Forward => Box::new(move || conv(&x, &w)),
                    pass => Box::new(move || native::conv_gradient(&g, &x, &w, walk, pass == Pass::Input)),
                });
            }
            // Towards few channels ours is another way: a transposed convolution, forward or as a gradient.
            let own = cpu && (kernel, stride, padding, groups) == (4, 2, 1, 1);
            match work.pass {
                Pass::Forward if own && transposed => {
                    let x = native::channels_last(&x)?;
                    ways.push(Box::new(move || native::strided(&x, &w, None, true, 1.0)));
                }
                Pass::Input if own && !transposed => {
                    let g = native::channels_last(&g)?;
                    ways.push(Box::new(move || native::strided(&g, &w, None, true, 1.0)));
                }
                _ => {}
            }
            Ok(ways)
        }
        Product::MatMul { batch, m, k, n } => {
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

    /// Every way of a piece of work gives the same shape, that of what it stands for.
    #[test]
    fn ways_compute_what_they_stand_for() {
        let linear = Product::Linear { rows: 1, from: 5, to: 7 };
        let strided = |from, to, height, width, transposed| {
            let (kernel, stride, padding, groups) = (4, 2, 1, 1);
            Product::Conv { from, to, height, width, kernel, stride, padding, groups, transposed }
        };
        let (down, up) = (strided(1, 6, 8, 12, false), strided(6, 3, 4, 6, true));
        for (product, pass, want) in [
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
            let all = ways(&Work { product, pass, batch: 2 }, (Kind::Float, Device::Cpu)).unwrap();
            assert!(all.len() >= 2);
            for way in all {
                assert_eq!(way().unwrap().size(), want, "{product:?} {pass:?}");
            }
        }
        let flops = |product| Work { product, pass: Pass::Forward, batch: 2 }.flops();
        assert_eq!((flops(linear), flops(down), flops(up)), (140.0, 2.0 * 24.0 * 96.0 * 2.0, 2.0 * 16.0 * 432.0 * 2.0));
    }
}
