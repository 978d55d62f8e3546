//! Tests of checkpoints on a disk.

use super::*;
use tch::{Device, Kind};

fn state(step: u64) -> State {
    State::new("vae".into(), step)
}

fn newest_of(folder: &Path) -> (PathBuf, State) {
    newest_resumable(folder).unwrap().unwrap()
}

fn keep(checkpoints: usize) -> Retention {
    Retention { checkpoints, optimizer: KeepOptimizer::Newest }
}

fn tensors(seed: i64) -> Vec<(Part, String, Tensor)> {
    tch::manual_seed(seed);
    let f = (Kind::Float, Device::Cpu);
    vec![
        (Part::Model, "a.weight".into(), Tensor::randn([3, 4], f)),
        (Part::Model, "a.bias".into(), Tensor::randn([4], f)),
        (Part::Optimizer, "step".into(), Tensor::from(seed as f64)),
    ]
}

fn show(list: &[(Part, String, Tensor)]) -> impl FnMut(&mut dyn Visit) -> Result<()> + '_ {
    move |v| list.iter().try_for_each(|(part, name, t)| v.tensor(*part, name, t))
}

const BOTH: [Part; 2] = [Part::Model, Part::Optimizer];

#[test]
fn what_is_saved_comes_back_and_old_ones_are_pruned() {
    let dir = tempfile::tempdir().unwrap();
    for step in [1, 2, 3, 10] {
        save(dir.path(), state(step), keep(2), &mut show(&tensors(step as i64))).unwrap();
    }
    assert_eq!(fs::read_to_string(dir.path().join("latest")).unwrap(), "step-00000010");
    assert_eq!(list(dir.path()).unwrap().len(), 2);
    let (newest, found) = newest_of(dir.path());
    assert_eq!(found.step, 10);
    let (live, want) = (tensors(0), tensors(10));
    load(&newest, &BOTH, &mut show(&live)).unwrap();
    for (l, w) in live.iter().zip(&want) {
        assert!(l.2.equal(&w.2), "{}", l.1);
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no temporary folder is left");
}

#[test]
fn older_checkpoints_lose_their_optimizer_state_but_the_best_one() {
    let steps_with_it = |dir: &Path| -> Vec<u64> {
        let all = list(dir).unwrap().into_iter();
        all.filter(|(_, d)| d.join("optimizer.safetensors").exists()).map(|(step, _)| step).collect()
    };
    let best = Some(Best { step: 2, value: 1.0 });
    for (optimizer, with_it) in [(KeepOptimizer::Newest, &[2, 4][..]), (KeepOptimizer::All, &[2, 3, 4])] {
        let dir = tempfile::tempdir().unwrap();
        let folder = &dir.path().join("checkpoints");
        fs::create_dir(folder).unwrap();
        let keep = Retention { checkpoints: 2, optimizer };
        for step in 1..=4 {
            save(folder, State { best: best.filter(|b| b.step <= step), ..state(step) }, keep, &mut show(&tensors(1)))
                .unwrap();
        }
        assert_eq!(list(folder).unwrap().len(), 3);
        assert_eq!(steps_with_it(folder), with_it);
        // With the newest one damaged, a reader takes the one before, and training goes on where it can.
        fs::write(folder.join("step-00000004/model.safetensors"), "x").unwrap();
        assert_eq!(newest_intact(folder).unwrap().unwrap().1.step, 3);
        assert_eq!(newest_resumable(folder).unwrap().unwrap().1.step, with_it[with_it.len() - 2]);
        fs::remove_dir_all(folder.join("step-00000002")).unwrap();
        let found = newest_resumable(folder);
        if optimizer == KeepOptimizer::All {
            assert_eq!(found.unwrap().unwrap().1.step, 3);
            // The setting may change on resume.
            settle(folder, &state(4), Retention { optimizer: KeepOptimizer::Newest, ..keep }).unwrap();
            assert_eq!(steps_with_it(folder), [4]);
            continue;
        }
        let e = found.unwrap_err().to_string();
        let want = format!("vae --init-from {}", dir.path().display());
        for part in ["step-00000003 holds no optimizer state", "--keep-optimizer all", &want] {
            assert!(e.contains(part), "{part}: {e}");
        }
        // Where the weights are damaged too, that is what is wrong.
        fs::write(folder.join("step-00000003/model.safetensors"), "x").unwrap();
        for read in [newest_intact, newest_resumable] {
            assert!(format!("{:#}", read(folder).unwrap_err()).contains("(2 damaged)"));
        }
    }
}

#[test]
fn any_damaged_file_sends_us_to_the_one_before() {
    let all = Retention { optimizer: KeepOptimizer::All, ..keep(5) };
    for (file, change) in [
        ("model.safetensors", 0),
        ("optimizer.safetensors", 1),
        ("state.json", 2),
        ("model.safetensors", 3),
        ("state.json", 4),
        ("state.sha256", 3),
    ] {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), state(1), all, &mut show(&tensors(1))).unwrap();
        let path = save(dir.path(), state(2), all, &mut show(&tensors(2))).unwrap().join(file);
        let mut bytes = fs::read(&path).unwrap();
        match change {
            0 => {
                let n = bytes.len();
                bytes[n - 1] ^= 1
            }
            1 => {
                bytes.pop();
            }
            2 => bytes.clear(),
            4 => {
                // A number that is still one.
                let at = bytes.windows(8).position(|w| w == b"\"wall_s\"").unwrap();
                bytes[at + 10] ^= 1;
            }
            _ => {
                fs::remove_file(&path).unwrap();
            }
        }
        if change != 3 {
            fs::write(&path, &bytes).unwrap();
        }
        let (found, state_1) = newest_of(dir.path());
        assert_eq!(state_1.step, 1, "{file}, change {change}");
        assert!(found.ends_with("step-00000001"));
        fs::remove_dir_all(dir.path().join("step-00000001")).unwrap();
        let e = format!("{:#}", newest_resumable(dir.path()).unwrap_err());
        assert!(e.contains("no intact checkpoint") && e.contains(file), "{e}");
    }
}

#[test]
fn only_numbered_folders_count_and_they_sort_by_number() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("step-notes.txt"), "mine").unwrap();
    fs::write(dir.path().join("step-99999999"), "a file").unwrap();
    fs::create_dir(dir.path().join("step-00000001.bak")).unwrap();
    for step in [99_999_998, 100_000_000, 100_000_001] {
        save(dir.path(), state(step), keep(2), &mut show(&tensors(1))).unwrap();
    }
    let steps: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [100_000_000, 100_000_001]);
    assert_eq!(newest_of(dir.path()).1.step, 100_000_001);
    assert!(dir.path().join("step-notes.txt").exists() && dir.path().join("step-00000001.bak").exists());
}

#[test]
fn the_best_one_outlives_newer_ones_until_a_better_one_comes() {
    let dir = tempfile::tempdir().unwrap();
    assert!(newest_intact(&dir.path().join("none")).unwrap().is_none(), "no checkpoint yet");
    let mut best = None;
    for (step, value) in [(1, 9.0), (2, 5.0), (3, 7.0), (4, 6.0), (5, 4.0)] {
        if best.is_none_or(|b: Best| value < b.value) {
            best = Some(Best { step, value });
        }
        save(dir.path(), State { best, ..state(step) }, keep(1), &mut show(&tensors(1))).unwrap();
        let kept: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
        let want: &[u64] = [&[1], &[2], &[2, 3][..], &[2, 4], &[5]][step as usize - 1];
        assert_eq!(kept, want);
    }
    assert_eq!(fs::read_to_string(dir.path().join("best")).unwrap(), "step-00000005");
    assert_eq!(newest_of(dir.path()).1.best, best);
}

/// A reader beside a run that writes a checkpoint all the time and keeps one, or writes the same one anew.
#[test]
fn a_reader_never_loses_to_the_run_that_trains() {
    let weights = |step: u64| vec![(Part::Model, "w".to_owned(), Tensor::from(step as f64))];
    for repeated in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let write = |step: u64| {
            let best = Some(Best { step, value: -(step as f64) });
            save(folder, State { best, ..state(step) }, keep(1), &mut show(&weights(step))).unwrap();
        };
        write(1);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut step = 1;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    step += u64::from(!repeated);
                    write(step);
                }
            });
            for i in 0..100 {
                let live = weights(0);
                let selection = if i % 2 == 0 { Selection::Latest } else { Selection::Best };
                let mut slow = true;
                let read = read(folder, selection, |dir, state| {
                    // Long enough for the run to write a newer one.
                    sleep(Duration::from_millis(if std::mem::take(&mut slow) { 5 } else { 0 }));
                    load(dir, &[Part::Model], &mut show(&live))?;
                    Ok(state.step)
                });
                done.store(read.is_err() || i == 99, std::sync::atomic::Ordering::Relaxed);
                let step = read.unwrap().expect("there is always one");
                assert!(live[0].2.equal(&weights(step)[0].2), "of another step than its state");
            }
        });
    }
}

#[test]
fn checkpoints_are_chosen_by_name_or_step() {
    let dir = tempfile::tempdir().unwrap();
    let read = |of: &str| read(dir.path(), of.parse().unwrap(), |_, state| Ok(state.step));
    for of in ["latest", "best", "3"] {
        assert_eq!(read(of).unwrap(), None, "no checkpoint yet");
    }
    save(dir.path(), state(1), keep(5), &mut show(&tensors(1))).unwrap();
    assert!(read("best").unwrap_err().to_string().contains("a GAN with `train --score fid`"));
    for step in [2, 3] {
        let best = Some(Best { step: 2, value: 1.0 });
        save(dir.path(), State { best, ..state(step) }, keep(5), &mut show(&tensors(1))).unwrap();
    }
    for (of, step) in [("latest", 3), ("best", 2), ("1", 1), ("0003", 3)] {
        assert_eq!(read(of).unwrap(), Some(step));
    }
    let e = read("4").unwrap_err();
    assert!(e.is::<crate::base::usage::Usage>() && e.to_string().contains("a step of 1, 2, 3"), "{e}");
    fs::write(dir.path().join("step-00000002/model.safetensors"), "x").unwrap();
    assert!(read("2").unwrap_err().to_string().contains("model.safetensors is damaged"));
    for bad in ["", "-1", "newest", "1.5", "step-00000002"] {
        assert!(bad.parse::<Selection>().is_err(), "{bad}");
    }
}

#[test]
fn checkpoints_of_a_branch_that_was_left_go() {
    let dir = tempfile::tempdir().unwrap();
    for step in [10, 20, 30, 15] {
        save(dir.path(), state(step), keep(2), &mut show(&tensors(1))).unwrap();
    }
    let steps: Vec<_> = list(dir.path()).unwrap().into_iter().map(|(step, _)| step).collect();
    assert_eq!(steps, [15], "10 was pruned before, 20 and 30 are later than the one just written");
}

#[test]
fn another_models_checkpoint_is_refused_whole_with_the_differences() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), state(1), keep(1), &mut show(&tensors(1))).unwrap();
    let mut live = tensors(5);
    live[1].2 = Tensor::zeros([5], (Kind::Float, Device::Cpu));
    live[2].1 = "other".into();
    live.push((Part::Model, "b".into(), Tensor::zeros([1], (Kind::Float, Device::Cpu))));
    let before = live[0].2.copy();
    let e = load(&path, &BOTH, &mut show(&live)).unwrap_err().to_string();
    assert!(e.contains("a.bias has shape [4], wanted [5]") && e.contains("b is missing"), "{e}");
    let e = load(&path, &[Part::Optimizer], &mut show(&live)).unwrap_err().to_string();
    assert!(e.contains("other is missing") && e.contains("step is not in this model"), "{e}");
    assert!(live[0].2.equal(&before), "nothing was copied");
}

#[test]
fn a_header_that_lies_about_sizes_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = save(dir.path(), state(1), keep(1), &mut show(&tensors(1))).unwrap();
    fs::write(path.join("model.safetensors"), [0xff; 16]).unwrap();
    let e = load(&path, &[Part::Model], &mut show(&tensors(1))).unwrap_err().to_string();
    assert!(e.contains("not a valid safetensors file"), "{e}");
}

#[test]
fn two_pieces_of_state_never_share_a_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut twice = tensors(1);
    twice[1].1 = "a.weight".into();
    assert!(save(dir.path(), state(1), keep(1), &mut show(&twice)).is_err());
}
