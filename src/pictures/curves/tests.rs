//! Tests of reading runs and drawing whole charts; those of the parts stand beside the parts.

use super::*;
use std::path::PathBuf;

/// A fresh folder per test, named after it.
fn folder(test: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("ganvae-plot-{test}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// What the two models declare.
fn vae_scalars() -> Vec<Scalar> {
    let nats = "nats per image";
    vec![
        Scalar::new("loss", "loss", nats, "loss"),
        Scalar::new("recon", "reconstruction", nats, "reconstruction"),
        Scalar::new("kl", "KL", nats, "KL"),
        Scalar::new("elbo", "ELBO", nats, ""),
    ]
}

fn gan_scalars() -> Vec<Scalar> {
    vec![
        Scalar::new("d_loss", "discriminator", "nats", "loss").equilibrium(Some(4f64.ln())),
        Scalar::new("g_loss", "generator", "nats", "loss").equilibrium(Some(2f64.ln())),
        Scalar::new("d_real", "real images", "logit", "mean critic output"),
        Scalar::new("d_fake", "generated images", "logit", "mean critic output"),
        Scalar::new("d_accuracy", "accuracy", "share", "accuracy and diversity"),
        Scalar::new("diversity", "diversity", "ratio", "accuracy and diversity"),
    ]
}

/// A run of a VAE with this metrics.jsonl.
fn read(test: &str, text: &str) -> Result<Metrics> {
    let run = folder(test);
    std::fs::write(run.join("metrics.jsonl"), text).unwrap();
    scalar::write(&run.join("scalars.json"), &vae_scalars()).unwrap();
    let metrics = Metrics::read(&run);
    std::fs::remove_dir_all(run).unwrap();
    metrics
}

fn metrics(scalars: Vec<Scalar>, columns: &[(&str, Vec<Pt>)]) -> Metrics {
    let last = columns.iter().filter_map(|c| c.1.last()).map(|p| p.0);
    let last_step = last.fold(None, |a: Option<f64>, b| Some(a.map_or(b, |a| a.max(b))));
    let columns = columns.iter().map(|(k, v)| (k.to_string(), column(v))).collect();
    Metrics { scalars, columns, last_step, read: (0, 0) }
}

fn column(points: &[Pt]) -> Column {
    let mut column = Column::default();
    points.iter().for_each(|p| column.push(*p));
    column
}

fn series(count: usize, f: impl Fn(f64) -> f64) -> Vec<Pt> {
    (1..=count).map(|i| (i as f64 * 10.0, f(i as f64 / count as f64))).collect()
}

fn vae() -> Metrics {
    let columns = [
        ("epoch", series(200, |t| t * 4.0)),
        ("loss", series(200, |t| 100.0 + 400.0 * (-t * 9.0).exp())),
        ("recon", series(200, |t| 80.0 + 400.0 * (-t * 9.0).exp())),
        ("kl", series(200, |t| 20.0 * t.sqrt())),
        ("test_loss", vec![(500.0, 150.0), (1000.0, 120.0), (2000.0, 110.0)]),
    ];
    metrics(vae_scalars(), &columns)
}

fn gan() -> Metrics {
    let columns = [
        ("d_loss", series(200, |t| 0.7 + 0.5 * t)),
        ("g_loss", series(200, |t| 2.0 - t)),
        ("d_real", series(200, |t| 3.0 - 2.0 * t)),
        ("d_fake", series(200, |t| 2.0 * t - 3.0)),
        ("test_d_real", vec![(1000.0, 2.2), (2000.0, 1.2)]),
    ];
    metrics(gan_scalars(), &columns)
}

/// Number of pixels of a colour in a region (x0, y0, x1, y1) of the drawn PNG.
fn count(image: &image::RgbImage, region: [u32; 4], color: RGBColor) -> usize {
    let [x0, y0, x1, y1] = region;
    let inside = |x: u32, y: u32| x >= x0 && x < x1 && y >= y0 && y < y1;
    let same = |p: &image::Rgb<u8>| p.0 == [color.0, color.1, color.2];
    image.enumerate_pixels().filter(|(x, y, p)| inside(*x, *y) && same(p)).count()
}

fn draw(test: &str, metrics: &Metrics) -> (image::RgbImage, String) {
    let dir = folder(test);
    let (png, svg) = (dir.join("loss.png"), dir.join("loss.SVG"));
    draw_run(metrics, test, &png).unwrap();
    draw_run(metrics, test, &svg).unwrap();
    let image = image::load_from_memory(&std::fs::read(&png).unwrap()).unwrap().to_rgb8();
    let svg = std::fs::read_to_string(&svg).unwrap();
    assert_eq!(image.dimensions(), SIZE);
    assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2, "no partial file may stay");
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    (image, svg)
}

/// The insides of the frames, below the legends and above the axis labels.
const UPPER: [u32; 4] = [70, 82, 1175, 398];
const LOWER: [u32; 4] = [90, 484, 1170, 738];
const LOWER_LEFT: [u32; 4] = [90, 484, 575, 738];
const LOWER_RIGHT: [u32; 4] = [690, 484, 1170, 738];

#[test]
fn a_torn_last_line_is_skipped_and_nulls_give_no_point() {
    let text =
        "{\"step\":10,\"loss\":5.5,\"kl\":null,\"note\":\"x\"}\n\n{\"step\":20,\"test_loss\":4}\n{\"step\":30,\"lo";
    let m = read("torn", text).unwrap();
    assert_eq!(m.series("loss"), [(10.0, 5.5)]);
    assert_eq!(m.series("test_loss"), [(20.0, 4.0)]);
    assert!(m.series("kl").is_empty() && m.series("absent").is_empty());
    assert_eq!(m.last_step(), Some(20.0));
    // Without its newline, but whole.
    let whole = read("whole", "{\"step\":10,\"d_loss\":null}").unwrap();
    assert_eq!(whole.last_step(), Some(10.0));
    assert_eq!(read("none", "").unwrap().last_step(), None);
}

#[test]
fn a_bad_line_is_named() {
    let good = "{\"step\":10,\"loss\":5}\n";
    let bad = ["{\"step\":20,\"lo\n", "[1]\n", "{\"loss\":1}\n", "{\"step\":null}\n", "{\"step\":-1}\n", "\u{0}\n"];
    for line in bad {
        let error = read("bad", &format!("{good}{line}{good}")).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl line 2"), "{line:?}: {error}");
    }
    let error = read("ended", &format!("{good}{{\"st\n")).unwrap_err().to_string();
    assert!(error.contains("line 2"), "a bad line with its newline is not torn: {error}");
    let dir = folder("lone");
    scalar::write(&dir.join("scalars.json"), &vae_scalars()).unwrap();
    assert!(Metrics::read(&dir).unwrap_err().to_string().contains("lone-"), "a missing file is named");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_resumed_run_replaces_what_it_repeats() {
    let row = |s: u32, v: u32| format!("{{\"step\":{s},\"loss\":{v},\"test_loss\":{v}}}\n");
    let text = [row(10, 1), row(20, 2), row(30, 3), row(20, 8), row(20, 9), row(40, 4)].concat();
    let m = read("resumed", &text).unwrap();
    let want = [(10.0, 1.0), (20.0, 9.0), (40.0, 4.0)];
    assert_eq!([m.series("loss"), m.series("test_loss")], [want, want]);
}

#[test]
fn a_long_run_is_bounded_and_keeps_means_extremes_and_the_end() {
    let value = |i: usize| if i == 77_777 { 500.0 } else { (i * 7919 % 101) as f64 };
    let points: Vec<Pt> = (1..=200_000).map(|i| (i as f64, value(i))).collect();
    let m = metrics(vae_scalars(), &[("loss", points.clone())]);
    let (means, extreme) = (m.series("loss"), extremes(m.points("loss")));
    assert!(means.len() > MOST / 2 && means.len() <= MOST && extreme.len() <= 2 * MOST, "{}", means.len());
    let merged = points.len().div_ceil(means.len()).next_power_of_two();
    for (mean, all) in means.iter().zip(points.chunks(merged)) {
        let want = all.iter().map(|p| p.1).sum::<f64>() / all.len() as f64;
        assert!((mean.1 - want).abs() < 1e-9 && mean.0 > all[0].0 && mean.0 < all[all.len() - 1].0 + 1.0);
    }
    assert!(extreme.contains(&(77_777.0, 500.0)) && extreme.is_sorted_by(|a, b| a.0 < b.0));
    let mut cut = m.columns["loss"].clone();
    cut.cut(100_000.0);
    assert!(cut.points.iter().all(|p| p.high.0 < 100_000.0) && cut.points.len() >= means.len() / 2 - 1);
    // Fewer points are kept as they are.
    let few = metrics(vae_scalars(), &[("loss", points[..MOST].to_vec())]);
    assert_eq!((few.series("loss"), extremes(few.points("loss"))), (points[..MOST].to_vec(), points[..MOST].to_vec()));
}

#[test]
fn a_growing_run_is_read_on_from_where_it_was() {
    let (run, text) = (folder("growing"), |rows: &[u32]| -> String {
        rows.iter().map(|s| format!("{{\"step\":{s},\"loss\":{s}}}\n")).collect()
    });
    scalar::write(&run.join("scalars.json"), &vae_scalars()).unwrap();
    let mut m = Metrics::default();
    for (file, want) in [
        (text(&[1, 2]) + "{\"step\":3", &[1.0, 2.0][..]),
        (text(&[1, 2, 3]) + "\n", &[1.0, 2.0, 3.0]),
        // What was read before is not read again.
        (text(&[8, 8, 8]) + "\n" + &text(&[4]), &[1.0, 2.0, 3.0, 4.0]),
        // The file was cut.
        (text(&[1, 5]), &[1.0, 5.0]),
    ] {
        std::fs::write(run.join("metrics.jsonl"), file).unwrap();
        m.read_on(&run).unwrap();
        assert_eq!(m.series("loss").iter().map(|p| p.1).collect::<Vec<_>>(), want);
    }
    std::fs::write(run.join("metrics.jsonl"), text(&[1, 5]) + "[1]\n").unwrap();
    for _ in 0..2 {
        assert!(m.read_on(&run).unwrap_err().to_string().contains("metrics.jsonl line 3"));
    }
    std::fs::remove_dir_all(&run).unwrap();
}

#[test]
fn smoothing_meets_its_closed_form() {
    for beta in [0.0, 0.5, 0.99] {
        assert!(smooth(&[7.25; 50], beta).iter().all(|v| (v - 7.25).abs() < 1e-12));
        assert_eq!(smooth(&[-3.0, 5.0], beta)[0], -3.0);
    }
    let values: Vec<f64> = (0..40).map(|i| f64::from(i * i % 17)).collect();
    let (beta, t): (f64, usize) = (0.8, 29);
    let terms = (0..=t).map(|i| (1.0 - beta) * beta.powi((t - i) as i32) * values[i]);
    let want = terms.sum::<f64>() / (1.0 - beta.powi(t as i32 + 1));
    assert!((smooth(&values, beta)[t] - want).abs() < 1e-12);
    assert_eq!(smooth(&values, 0.0), values);
    assert!(smooth(&[], 0.9).is_empty());
}

#[test]
fn the_drawn_smoothing_looks_both_ways() {
    let line = smoothed(&series(600, |t| t));
    let plain = smooth(&series(600, |t| t).iter().map(|p| p.1).collect::<Vec<_>>(), 0.9);
    // Amid a straight line there is no lag; at its end there is only the past.
    assert!((line[300].1 - 301.0 / 600.0).abs() < 1e-9);
    assert!((line[599].1 - plain[599]).abs() < 1e-12);
    let flat = smoothed(&series(600, |_| 4.0));
    assert!(flat.iter().all(|p| (p.1 - 4.0).abs() < 1e-9));
    let direct = |i: usize| {
        let w = |k: usize| 0.9f64.powi(i.abs_diff(k) as i32);
        let sum: f64 = (0..600).map(|k| w(k) * ((k as f64) / 9.0).sin()).sum();
        sum / (0..600).map(w).sum::<f64>()
    };
    let wave = smoothed(&(0..600).map(|k| (k as f64, (k as f64 / 9.0).sin())).collect::<Vec<_>>());
    for i in [0, 5, 300, 590] {
        assert!((wave[i].1 - direct(i)).abs() < 1e-9, "{i}");
    }
}

#[test]
fn a_vae_chart_shows_each_curve_in_its_panel() {
    let (image, svg) = draw("vae", &vae());
    assert!(count(&image, UPPER, BLUE) > 800 && count(&image, UPPER, VERMILLION) > 300);
    for region in [LOWER_LEFT, LOWER_RIGHT] {
        assert!(count(&image, region, BLUE) > 300);
        assert_eq!(count(&image, region, VERMILLION), 0, "nothing was tested here");
    }
    // The start lies far above the range: it must leave through the frame, not be drawn over the legend.
    assert_eq!(count(&image, [70, 67, 1200, 78], BLUE), 0);
    let texts = [
        "loss (nats per image)",
        "reconstruction (nats per image)",
        "KL (nats per image)",
        "step (1 epoch = 500 steps)",
        "train (smoothed, last 100.1)",
        "test, last 110.0",
        "step 2,000, epoch 4\n",
        "\nvae\n",
    ];
    for text in texts {
        assert!(svg.contains(text), "{text}");
    }
}

#[test]
fn a_gan_chart_shows_each_curve_in_its_panel() {
    let (image, svg) = draw("gan", &gan());
    for (region, color) in [(UPPER, BLUE), (UPPER, VERMILLION), (LOWER, GREEN), (LOWER, PURPLE)] {
        assert!(count(&image, region, color) > 800, "{color:?}");
    }
    let texts = [
        "loss (nats)",
        "mean critic output (logit)",
        "discriminator (d_loss, last ",
        "generator (g_loss",
        "real images (d_real",
        "generated images (d_fake, last −",
        "ln 4",
        "ln 2",
        "equilibrium",
        "\ntest\n",
        "\nstep\n",
    ];
    for text in texts {
        assert!(svg.contains(text), "{text}");
    }
    assert!(!svg.contains("accuracy"), "of what was not logged there is no panel");
    let mut whole = gan();
    whole.columns.insert("d_accuracy".into(), column(&series(200, |t| 1.0 - 0.3 * t)));
    whole.columns.insert("diversity".into(), column(&series(200, |t| 0.2 + 0.78 * t)));
    let (image, svg) = draw("healthy", &whole);
    for (region, color) in [(LOWER_LEFT, GREEN), (LOWER_RIGHT, ORANGE), (LOWER_RIGHT, SKY)] {
        assert!(count(&image, region, color) > 400, "{color:?}");
    }
    for text in ["accuracy and diversity", "accuracy (d_accuracy, last 0.7", "diversity (diversity, last 0.9"] {
        assert!(svg.contains(text), "{text}");
    }
    let mut other = gan();
    other.scalars.iter_mut().for_each(|s| s.equilibrium = None);
    let svg = draw("hinge", &other).1;
    assert!(!svg.contains("ln 4") && !svg.contains("equilibrium"));
}

#[test]
fn odd_runs_give_whole_charts() {
    for empty in [Metrics::default(), read("nulls", "{\"step\":9,\"loss\":null}\n").unwrap()] {
        let (image, svg) = draw("empty", &empty);
        assert!(svg.contains("no data yet"));
        assert!(count(&image, UPPER, GREY) + count(&image, LOWER, GREY) > 20);
    }
    let outlier = |t: f64| if t == 0.5 { 1e308 } else { 1.0 + t };
    let cases: [(&str, Vec<Pt>); 8] = [
        ("outlier", series(60, outlier)),
        ("one", vec![(50.0, 420.0)]),
        ("start", vec![(0.0, 420.0)]),
        ("two", vec![(50.0, 420.0), (100.0, 380.0)]),
        ("constant", series(100, |_| 1e6)),
        ("zero", series(100, |_| 0.0)),
        ("negative", series(100, |t| -1e6 * t)),
        ("huge", series(100, |t| if t < 0.5 { 1e308 } else { -1e308 })),
    ];
    for (name, points) in cases {
        let (image, svg) = draw(name, &metrics(vae_scalars(), &[("loss", points), ("kl", vec![])]));
        assert!(count(&image, UPPER, BLUE) > 10, "{name}: nothing drawn");
        assert!(svg.contains("no data yet"), "{name}: the other panels are empty");
    }
}

#[test]
fn a_long_run_draws_as_the_same_curve() {
    let noise = |t: f64| 100.0 + (t * 1e5 * 1.7).sin();
    let (image, svg) =
        draw("long", &metrics(vae_scalars(), &[("loss", series(100_000, noise)), ("recon", vec![]), ("kl", vec![])]));
    assert!(count(&image, UPPER, BLUE) > 800);
    assert!(svg.len() < 400_000, "an SVG of {} bytes was not thinned out", svg.len());
}

#[test]
fn several_runs_share_a_chart_in_their_own_colours() {
    let dir = folder("runs");
    let runs = |kind: fn() -> Metrics| -> Vec<(String, Metrics)> {
        let mut runs: Vec<_> = (0..3).map(|i| (format!("000{i}-<run>"), kind())).collect();
        for (i, run) in runs.iter_mut().enumerate() {
            for p in run.1.columns.values_mut().flat_map(|column| &mut column.points) {
                [&mut p.mean, &mut p.low, &mut p.high].into_iter().for_each(|p| p.1 *= 1.0 + 0.1 * i as f64);
            }
        }
        runs.push(("0009-new".to_string(), Metrics::default()));
        runs
    };
    for (name, kind) in [("vae", vae as fn() -> Metrics), ("gan", gan)] {
        let (png, svg) = (dir.join(format!("{name}.png")), dir.join(format!("{name}.svg")));
        draw_runs(&runs(kind), &png).unwrap();
        draw_runs(&runs(kind), &svg).unwrap();
        let image = image::open(&png).unwrap().to_rgb8();
        for color in [BLUE, VERMILLION, GREEN] {
            assert!(count(&image, [90, 90, 575, 400], color) > 200, "{name} {color:?}");
        }
        let svg = std::fs::read_to_string(&svg).unwrap();
        for text in ["4 runs", "0002-&lt;run&gt;", "0009-new (no data yet)", "training (smoothed)", "\ntest\n"] {
            assert!(svg.contains(text), "{name}: {text}");
        }
    }
    let colors: std::collections::HashSet<_> = (0..21).map(|i| format!("{:?}", color(i))).collect();
    assert_eq!(colors.len(), 21, "each of 21 runs has its own colour");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn wrong_uses_are_explained() {
    let dir = folder("wrong");
    let fails = |r: Result<()>| format!("{:#}", r.unwrap_err());
    for (name, found) in [("loss.jpg", "'.jpg'"), ("loss", "missing")] {
        let error = fails(draw_run(&vae(), "t", &dir.join(name)));
        assert!(error.contains(found) && error.contains(".png or .svg"), "{error}");
    }
    let mixed = [("a-vae".to_string(), vae()), ("a-gan".to_string(), gan())];
    let error = fails(draw_runs(&mixed, &dir.join("x.png")));
    assert!(error.contains("'a-gan' has logged d_loss, g_loss") && error.contains("loss, recon, kl"), "{error}");
    assert!(fails(draw_runs(&[], &dir.join("x.png"))).contains("no run"));
    let error = fails(draw_run(&vae(), "t", &dir.join("absent/x.png")));
    assert!(error.contains("absent/x.png"), "{error}");
    std::fs::create_dir(dir.join("folder.png")).unwrap();
    let error = fails(draw_run(&vae(), "t", &dir.join("folder.png")));
    assert!(error.contains("folder.png"), "{error}");
    let left = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(left, 1, "a failure leaves nothing but the folder");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn rows_of_a_part_of_an_interval_are_not_drawn() {
    // Rows every 50 steps and at the end of epochs of 51: the mean of one update, of two, and so on.
    let mut steps: Vec<f64> = (1..20).flat_map(|i| [50.0 * f64::from(i), 51.0 * f64::from(i)]).collect();
    steps.sort_by(f64::total_cmp);
    let points = steps.iter().map(|step| (*step, 1.0)).collect();
    let kept: Vec<f64> = without_partial(points, |p: &Pt| p.0).iter().map(|p| p.0).collect();
    assert!(kept.iter().all(|step| step % 50.0 == 0.0 || *step > 700.0), "{kept:?}");
    assert!(kept.len() >= 17 && kept.contains(&50.0) && kept.contains(&500.0), "{kept:?}");
    for few in [vec![], vec![(3.0, 1.0)], vec![(3.0, 1.0), (4.0, 2.0)]] {
        assert_eq!(without_partial(few.clone(), |p: &Pt| p.0), few);
    }
}

/// A loss that depends on a weight of the runs gives its place to the scalar that it names.
#[test]
fn runs_are_compared_by_what_does_not_depend_on_their_weights() {
    let scalar = |key: &str, panel: &str| Scalar::new(key, key, "nats", panel);
    let scalars = vec![scalar("loss", "loss").compared_by("elbo"), scalar("kl", "KL"), scalar("elbo", "")];
    let mut metrics = Metrics { scalars, ..Metrics::default() };
    let row = serde_json::json!({"step": 1, "loss": 2.0, "kl": 1.0, "elbo": -1.5});
    metrics.push(row.as_object().unwrap().clone()).unwrap();
    assert_eq!(metrics.compared().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["elbo", "kl"]);
    assert_eq!(metrics.drawn().map(|s| s.key.as_str()).collect::<Vec<_>>(), ["loss", "kl"]);
}

/// Merged points keep their lowest and highest values, however close in step the two are.
#[test]
fn the_extremes_of_a_long_run_are_all_drawn() {
    let mut metrics = Metrics::default();
    for i in 0..40_000u32 {
        let value = if i % 997 == 0 { 50.0 } else { f64::from(i % 7) };
        let row = serde_json::json!({"step": 50 * i, "loss": value});
        metrics.push(row.as_object().unwrap().clone()).unwrap();
    }
    let drawn = extremes(&metrics.whole("loss"));
    assert_eq!(drawn, extremes(metrics.points("loss")));
    assert_eq!(drawn.iter().filter(|p| p.1 == 50.0).count(), 41);
}
