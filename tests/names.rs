//! Names that are not UTF-8, break lines or control a terminal: they work everywhere, and are never shown as they are.

mod common;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Output;

use common::{BIN, command, listing, refused, sentence, text};

/// An escape sequence, line breaks, C1 controls, DEL, two changes of direction, and a byte that is not UTF-8.
const EVIL: &[u8] = b"\x1b[31m\nBROKEN\r\xc2\x9b\xc2\x85\x7f\xe2\x80\xae\xe2\x81\xa6\xff";
const SHOWN: &str = r"\x1b[31m\x0aBROKEN\x0d\xc2\x9b\xc2\x85\x7f\xe2\x80\xae\xe2\x81\xa6\xff";

/// A name in which `@` stands for the evil part.
fn name(word: &str) -> OsString {
    let parts: Vec<&[u8]> = word.split('@').map(str::as_bytes).collect();
    OsStr::from_bytes(&parts.join(EVIL)).to_owned()
}

/// UTF-8 without control characters, in which no line begins amid a name.
fn assert_safe(what: &str, bytes: &[u8]) {
    let text = str::from_utf8(bytes).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(
        !text.contains(|c: char| (c.is_control() && c != '\n') || "\u{202e}\u{2066}".contains(c)),
        "{what}: {text:?}"
    );
    assert!(!text.contains("\nBROKEN"), "{what}: {text}");
}

/// Runs the command of this line.
fn run(dir: &Path, line: &str) -> Output {
    let out = command(BIN, dir).args(line.split(' ').map(name)).output().unwrap();
    assert_safe(line, &[&out.stdout[..], b"\n", &out.stderr].concat());
    out
}

fn good(dir: &Path, line: &str) -> String {
    let out = run(dir, line);
    assert!(out.status.success(), "{line}: {}", text(&out.stderr));
    text(&out.stdout)
}

#[test]
fn names_of_any_bytes_work_and_are_shown_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    for class in ["cat@", "dog@"] {
        let folder = d.join(name("pictures@")).join(name(class));
        fs::create_dir_all(&folder).unwrap();
        for i in 0..12u8 {
            let picture = image::GrayImage::from_pixel(8, 8, image::Luma([20 * i]));
            picture.save_with_format(folder.join(name(&format!("{i}@.png"))), image::ImageFormat::Png).unwrap();
        }
    }
    let said = good(d, "data pictures@ --out p@.png");
    for line in [format!("data      pictures{SHOWN}"), format!("train has cat{SHOWN}:11 dog{SHOWN}:11")] {
        assert!(said.lines().any(|found| found == line), "{said}");
    }

    let small =
        "train vae --encoder-hidden 8 --decoder-hidden 8 --latent 2 --batch-size 8 --device cpu --data pictures@";
    let summary = good(d, &format!("{small} --steps 6 --out run@"));
    assert!(summary.ends_with(&format!("more     ganvae sample $'run{SHOWN}'\n")), "{summary}");
    good(d, &format!("{small} --steps 1 --init-from run@ --data-dir sets@"));
    for (line, file) in [
        ("sample run@ --out", "s@"),
        ("sample run@/export --count 2 --out", "t@.png"),
        ("plot run@ --out", "u@.svg"),
        ("plot run@ run@ --out", "v@.svg"),
        ("plot run@ --latent --out", "w@.svg"),
        ("plot run@ --progress --out", "x@.gif"),
        ("encode run@ --out", "y@.npy"),
        ("reconstruct run@ --data pictures@ --out", "z@.png"),
        ("interpolate run@ --data pictures@ --rows 2 --steps 3 --out", "i@.gif"),
        ("export run@ --out", "export@"),
    ] {
        let said = good(d, &format!("{line} {file}"));
        assert!(said.starts_with(&file.replace('@', SHOWN)), "{said}");
        assert!(d.join(name(file)).exists(), "{file}");
    }
    good(d, "reconstruct run@ --data pictures@");

    // From another folder, by the paths in config.toml; then moved.
    fs::create_dir(d.join("elsewhere")).unwrap();
    good(&d.join("elsewhere"), "train --resume ../run@ --steps 7");
    let numbered = fs::read_dir(d.join("runs")).unwrap().next().unwrap().unwrap().file_name().into_string().unwrap();
    assert!(numbered.starts_with("0001-vae-pictures-x1b-31m-x0abroken"), "{numbered}");
    good(&d.join("elsewhere"), &format!("train --resume ../runs/{numbered} --steps 2"));
    fs::rename(d.join(name("run@")), d.join(name("elsewhere/moved@"))).unwrap();
    good(d, "train --resume elsewhere/moved@ --steps 8");

    fs::rename(d.join(name("pictures@")), d.join("gone")).unwrap();
    for line in [
        "train --resume elsewhere/moved@ --steps 9",
        "train vae --data none@",
        "train vae --data digits --out elsewhere/moved@",
        "train vae --data digits --train-limit 20 --test-limit 5 --init-from none@",
        "train vae --config none@",
        "train --resume none@",
        "train vae --epochs @",
        "sample none@",
        "sample elsewhere/moved@ --out x.@",
        "encode elsewhere/moved@ --data none@",
        "plot none@",
        "data none@",
        "@",
    ] {
        let out = run(d, line);
        let said = text(&out.stderr);
        assert!(matches!(out.status.code(), Some(1 | 2)), "{line}: {said}");
        assert_eq!(said.lines().count(), 1, "{line}: {said}");
        // Of clap's errors, what was given is not the whole.
        assert!(said.starts_with("error: ") && said.contains("BROKEN"), "{line}: {said}");
    }

    // What a run makes has safe names and safe text.
    for root in ["elsewhere/moved@", "runs", "export@", "u@.svg", "v@.svg", "w@.svg"].map(|root| d.join(name(root))) {
        for path in listing(&root).into_iter().chain([root.clone()]) {
            assert_safe("a name", path.strip_prefix(&root).unwrap().as_os_str().as_bytes());
            if path.extension().is_some_and(|e| ["toml", "json", "jsonl", "svg"].iter().any(|text| e == *text)) {
                assert_safe("a file", &fs::read(&path).unwrap());
            }
        }
    }
}

/// The system allows 4095 bytes in an absolute path: one more is refused before anything is read or written.
#[test]
fn a_path_that_is_too_long_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    let longest = "/checkpoints/.step-0000000000000000.part/optimizer.safetensors";
    let root = |bytes: usize| "d/".repeat(bytes / 2) + &"e".repeat(bytes % 2 + 2);
    let small =
        "train vae --train-limit 20 --test-limit 5 --encoder-hidden 4 --decoder-hidden 4 --device cpu --steps 1 --out";
    let fits = root(4093 - longest.len() - d.as_os_str().len() - 1);
    let too_long = format!("{fits}f");
    let args: Vec<&str> = small.split(' ').chain([&*too_long]).collect();
    refused(d, &args, 2, &["--out d/d/", "shorter path", "File name too long"]);
    good(d, &format!("{small} {fits}"));
    fs::rename(d.join("d"), d.join("dd")).unwrap();
    let out = run(d, &format!("train --resume d{fits} --steps 2"));
    sentence(&text(&out.stderr), &["--resume dd/d/", "shorter path"]);
    assert_eq!(out.status.code(), Some(2));
}
