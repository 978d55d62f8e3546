//! What a step cannot do without: its products and convolutions alone, each in the fastest form there is.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::gpu;
use crate::native;
use crate::nets::{Op, Pass, Work};

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
    match work.op {
        Op::Linear { from, to } => {
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
        Op::Strided { from, to, height, width, transposed } => {
            let (out, weights) = if transposed {
                ([b, to, 2 * height, 2 * width], [from, to, 4, 4])
            } else {
                ([b, to, height / 2, width / 2], [to, from, 4, 4])
            };
            let (x, w, g) = (random(&[b, from, height, width])?, random(&weights)?, random(&out)?);
            let mut ways: Vec<Way> = Vec::new();
            for last in [false, true] {
                let lay = |t: &Tensor| if last { native::channels_last(t) } else { Ok(t.shallow_clone()) };
                let (x, w, g) = (lay(&x)?, if w.size()[1] > 1 { lay(&w)? } else { w.shallow_clone() }, lay(&g)?);
                ways.push(match work.pass {
                    Pass::Forward if transposed => Box::new(move || {
                        Ok(x.f_conv_transpose2d::<Tensor>(&w, None, [2, 2], [1, 1], [0, 0], 1, [1, 1])?)
                    }),
                    Pass::Forward => Box::new(move || Ok(x.f_conv2d::<Tensor>(&w, None, [2, 2], [1, 1], [1, 1], 1)?)),
                    pass => Box::new(move || native::strided_gradient(&g, &x, &w, transposed, pass == Pass::Input)),
                });
            }
            // Towards few channels ours is another way: a transposed convolution, forward or as a gradient.
            let (x, w) = (native::channels_last(&x)?, w);
            match work.pass {
                Pass::Forward if cpu && transposed => {
                    ways.push(Box::new(move || native::strided(&x, &w, None, true, 1.0)));
                }
                Pass::Input if cpu && !transposed => {
                    let g = native::channels_last(&g)?;
                    ways.push(Box::new(move || native::strided(&g, &w, None, true, 1.0)));
                }
                _ => {}
            }
            Ok(ways)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every way of a piece of work gives the same shape, that of what it stands for.
    #[test]
    fn ways_compute_what_they_stand_for() {
        let linear = Op::Linear { from: 5, to: 7 };
        let down = Op::Strided { from: 1, to: 6, height: 8, width: 12, transposed: false };
        let up = Op::Strided { from: 6, to: 3, height: 4, width: 6, transposed: true };
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
            let all = ways(&Work { op, pass, batch: 2 }, (Kind::Float, Device::Cpu)).unwrap();
            assert!(all.len() >= 2);
            for way in all {
                assert_eq!(way().unwrap().size(), want, "{op:?} {pass:?}");
            }
        }
        let flops = |op| Work { op, pass: Pass::Forward, batch: 2 }.flops();
        assert_eq!((flops(linear), flops(down), flops(up)), (140.0, 2.0 * 24.0 * 96.0 * 2.0, 2.0 * 16.0 * 432.0 * 2.0));
    }
}
