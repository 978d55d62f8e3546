//! Finds the named data sets on disk, or downloads them.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressFinish};
use ureq::Agent;

use super::idx;
use crate::base::atomic_file;
use crate::base::hash;
use crate::base::progress::{bar, say};

/// The environment variable with the URL of a preferred mirror. It serves `<set>/<file>`, such as `mnist/train-images-...gz`.
pub const MIRROR_VARIABLE: &str = "GANVAE_MIRROR";

/// Time limit of DNS and of connecting.
const CONNECT: Duration = Duration::from_secs(10);
/// Time limit of each read.
const STALL: Duration = Duration::from_secs(30);

/// A published file.
pub struct KnownFile {
    /// Its name, which ends in `.gz`.
    pub name: &'static str,
    /// Its length in bytes; a download reads at most one byte more.
    pub bytes: u64,
    /// Its SHA-256 in lower-case hexadecimal.
    pub sha256: &'static str,
}

/// A data set with a name on the command line.
pub struct NamedSet {
    /// The name on the command line, and the folder of the set inside the data folder.
    pub name: &'static str,
    /// Torchvision's folder of the set inside its data folder; the files are in `<this>/raw`.
    pub torchvision: &'static str,
    /// The files, in the order of [`idx::STEMS`].
    pub files: [KnownFile; 4],
    /// URLs that end in `/`, to be followed by the file name; the best first.
    pub mirrors: &'static [&'static str],
    /// The names of the classes 0..=9, separated by commas.
    pub classes: &'static str,
}

const fn files([a, b, c, d]: [(u64, &'static str); 4]) -> [KnownFile; 4] {
    [
        KnownFile { name: "train-images-idx3-ubyte.gz", bytes: a.0, sha256: a.1 },
        KnownFile { name: "train-labels-idx1-ubyte.gz", bytes: b.0, sha256: b.1 },
        KnownFile { name: "t10k-images-idx3-ubyte.gz", bytes: c.0, sha256: c.1 },
        KnownFile { name: "t10k-labels-idx1-ubyte.gz", bytes: d.0, sha256: d.1 },
    ]
}

/// The named sets: MNIST (LeCun, Cortes, Burges 1998), Fashion-MNIST (Xiao, Rasul, Vollgraf 2017,
/// arXiv:1708.07747) and Kuzushiji-MNIST (Clanuwat et al. 2018, arXiv:1812.01718).
pub static SETS: [NamedSet; 3] = [
    NamedSet {
        name: "mnist",
        torchvision: "MNIST",
        files: files([
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ]),
        mirrors: &[
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ],
        classes: "0,1,2,3,4,5,6,7,8,9",
    },
    NamedSet {
        name: "fashion-mnist",
        torchvision: "FashionMNIST",
        files: files([
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ]),
        mirrors: &[
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
        ],
        classes: "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot",
    },
    NamedSet {
        name: "kmnist",
        torchvision: "KMNIST",
        files: files([
            (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ]),
        mirrors: &[
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "https://huggingface.co/datasets/tanganke/kmnist/resolve/53810959241e8f35890445245170c8cec0672f81/raw/",
        ],
        classes: "o,ki,su,tsu,na,ha,ma,ya,re,wo",
    },
];

/// The set called `name`.
pub fn find(name: &str) -> Option<&'static NamedSet> {
    SETS.iter().find(|set| set.name == name)
}

/// Downloads the missing files of `set` and returns the folder that holds all four.
///
/// Searched, with and without `.gz`: `data_dir/<name>`, torchvision's `data_dir/<Name>/raw`, and `data_dir`. All sets use the same
/// file names, so `data_dir` counts only if it has the name of the set or its packed training labels have the published checksum.
/// Checksums of other local files are not compared, because a repacked copy differs. Downloads are compared, and atomic.
///
/// # Errors
/// When a file is missing and no mirror serves it (says which files to put where), or when the folder cannot be written.
pub fn ensure(set: &NamedSet, data_dir: &Path) -> Result<PathBuf> {
    let first = std::env::var_os(MIRROR_VARIABLE).map(|v| v.to_string_lossy().into_owned());
    let first = first.filter(|url| !url.is_empty());
    ensure_with(set, data_dir, first.as_deref(), &agent(CONNECT, STALL))
}

fn agent(connect: Duration, stall: Duration) -> Agent {
    let config = Agent::config_builder()
        .user_agent(concat!("ganvae/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(connect))
        .timeout_connect(Some(connect))
        .timeout_recv_response(Some(stall))
        .timeout_per_read(Some(stall))
        .build();
    Agent::new_with_config(config)
}

fn ensure_with(set: &NamedSet, data_dir: &Path, first: Option<&str>, agent: &Agent) -> Result<PathBuf> {
    let own = data_dir.join(set.name);
    let raw = data_dir.join(set.torchvision).join("raw");
    for dir in [&own, &raw] {
        if missing(set, dir).is_empty() {
            return Ok(dir.clone());
        }
    }
    if missing(set, data_dir).is_empty() && is_set(set, data_dir) {
        return Ok(data_dir.to_owned());
    }
    let mut bases: Vec<String> = set.mirrors.iter().map(|&m| m.to_owned()).collect();
    if let Some(first) = first {
        bases.insert(0, format!("{}/{}/", first.trim_end_matches('/'), set.name));
    }
    for file in missing(set, &own) {
        let good = download(set, file, &own, &bases, agent)?;
        bases[..=good].rotate_right(1); // the next file starts with the mirror that worked
    }
    Ok(own)
}

/// The files of `set` that are not in `dir`, packed or unpacked.
fn missing<'a>(set: &'a NamedSet, dir: &Path) -> Vec<&'a KnownFile> {
    let stem = |file: &KnownFile| file.name.trim_end_matches(".gz");
    let absent = |file: &&KnownFile| idx::find_file(dir, stem(file)).is_none();
    set.files.iter().filter(absent).collect()
}

/// Whether the four files in `dir` are this set and not another, which has the same file names.
fn is_set(set: &NamedSet, dir: &Path) -> bool {
    let real = fs::canonicalize(dir).unwrap_or_else(|_| dir.to_owned());
    let name = real.file_name().unwrap_or_default().to_string_lossy();
    if name.eq_ignore_ascii_case(set.name) || name == set.torchvision {
        return true;
    }
    let labels = &set.files[1];
    hash::sha256_file(&dir.join(labels.name)).is_ok_and(|found| found == (labels.bytes, labels.sha256.to_owned()))
}

/// Downloads `file` into `dir` from the first mirror that serves it, and returns the index of that mirror.
fn download(set: &NamedSet, file: &KnownFile, dir: &Path, bases: &[String], agent: &Agent) -> Result<usize> {
    let mut reasons = Vec::new();
    for (i, base) in bases.iter().enumerate() {
        match fetch(&format!("{base}{}", file.name), file, agent) {
            Ok(bytes) => {
                let write = || atomic_file::write_shared(&dir.join(file.name), &bytes);
                return fs::create_dir_all(dir).and_then(|()| write()).map(|()| i).with_context(|| {
                    let (name, dir) = (file.name, dir.display());
                    format!("cannot write {name} into {dir}: free some space or choose another --data-dir")
                });
            }
            Err(why) => reasons.push(format!("{}: {why}", host(base))),
        }
    }
    let names: Vec<&str> = missing(set, dir).iter().map(|f| f.name).collect();
    let beside = dir.parent().filter(|up| missing(set, up).is_empty());
    let hint =
        beside.map_or("", |_| " (move them if they are the ones beside that folder, which could be any of three sets)");
    bail!(
        "{} is not on this machine, and no mirror served {} ({}): put {} (or unpacked, without .gz) into {}{hint}, \
         or name a server that has {}/{} in {MIRROR_VARIABLE}",
        set.name,
        file.name,
        reasons.join("; "),
        names.join(", "),
        dir.display(),
        set.name,
        file.name
    );
}

/// The content of `file` from `url`, checked against its length and checksum; the error is a short reason.
fn fetch(url: &str, file: &KnownFile, agent: &Agent) -> Result<Vec<u8>, String> {
    let mut body = agent.get(url).call().map_err(|e| short(&e))?.into_body();
    let wanted = file.bytes;
    if let Some(len) = body.content_length().filter(|&len| len != wanted) {
        return Err(format!("offers {len} bytes, wanted {wanted}"));
    }
    let mut bytes = Vec::new();
    let read = progress(file, url).wrap_read(body.as_reader().take(wanted + 1)).read_to_end(&mut bytes);
    let found = bytes.len() as u64;
    if let Err(e) = read {
        return Err(format!("broke off after {found} of {wanted} bytes, {}", shorten(&e)));
    }
    if found != wanted {
        let only = if found < wanted { "only" } else { "more than" };
        return Err(format!("sent {only} {} bytes, wanted {wanted}", found.min(wanted)));
    }
    let sum = hash::sha256([&bytes[..]]);
    if sum != file.sha256 {
        return Err(format!("wrong checksum, SHA-256 {sum:.12}... instead of {:.12}...", file.sha256));
    }
    Ok(bytes)
}

/// A progress bar in a terminal; elsewhere a line of text.
fn progress(file: &KnownFile, url: &str) -> ProgressBar {
    let bar = bar(file.bytes, "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}", |style| style);
    if bar.is_hidden() {
        say(&format!("downloading {} ({:.1} MB) from {}", file.name, file.bytes as f64 / 1e6, host(url)));
    }
    bar.with_message(file.name).with_finish(ProgressFinish::AndClear)
}

fn host(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

fn short(e: &ureq::Error) -> String {
    match e {
        ureq::Error::StatusCode(code) => format!("answered {code}"),
        ureq::Error::Timeout(_) => "no answer in time".to_owned(),
        ureq::Error::HostNotFound => "host not found".to_owned(),
        // Errors of the system's resolver.
        ureq::Error::Io(e) if e.to_string().contains("lookup") => "host not found".to_owned(),
        ureq::Error::Io(e) => shorten(e),
        e => shorten(e),
    }
}

/// The first 80 characters of an error, on one line.
fn shorten(e: &impl fmt::Display) -> String {
    let text = e.to_string().replace('\n', " ");
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use tempfile::tempdir;

    /// What the little server does with a request for a file whose content is `bytes`.
    #[derive(Clone, Copy)]
    enum Answer {
        Good,
        Corrupt,
        /// The promised length, but the connection closes halfway.
        BreaksOff,
        /// Half the file with a length that agrees.
        Short,
        /// No length, and more bytes than the file has.
        Long,
        NotFound,
        /// Half the file, then nothing.
        Stalls,
    }

    fn content(name: &str) -> Vec<u8> {
        name.bytes().cycle().take(100_000 + name.len()).collect()
    }

    /// A server on a free port of this machine; it ends with the test process.
    fn serve(answer: Answer) -> &'static str {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                std::thread::spawn(move || respond(stream, answer));
            }
        });
        Box::leak(format!("http://127.0.0.1:{port}/").into_boxed_str())
    }

    fn respond(mut stream: std::net::TcpStream, answer: Answer) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let request = lines.next().unwrap().unwrap();
        while lines.next().is_some_and(|line| line.is_ok_and(|line| !line.is_empty())) {}
        let path = request.split(' ').nth(1).unwrap();
        let mut body = content(path.rsplit('/').next().unwrap());
        let half = body.len() / 2;
        let mut length = Some(body.len());
        let mut status = "200 OK";
        match answer {
            Answer::Good => {}
            Answer::Corrupt => body[half] ^= 1,
            Answer::BreaksOff | Answer::Stalls => body.truncate(half),
            Answer::Short => {
                body.truncate(half);
                length = Some(half);
            }
            Answer::Long => {
                body.extend([0; 1000]);
                length = None;
            }
            Answer::NotFound => {
                status = "404 Not Found";
                length = Some(0);
                body.clear();
            }
        }
        let length = length.map_or(String::new(), |n| format!("Content-Length: {n}\r\n"));
        let head = format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n\r\n");
        stream.write_all(&[head.as_bytes(), &body].concat()).ok();
        if matches!(answer, Answer::Stalls) {
            std::thread::sleep(Duration::from_secs(20));
        }
    }

    /// A set of four made-up files that these mirrors serve.
    fn set(mirrors: &[&'static str]) -> NamedSet {
        let known = SETS[0].files.each_ref().map(|f| f.name);
        NamedSet {
            files: known.map(|name| {
                let bytes = content(name);
                let sha256 = hash::sha256([&bytes[..]]);
                KnownFile { name, bytes: bytes.len() as u64, sha256: Box::leak(sha256.into_boxed_str()) }
            }),
            mirrors: Box::leak(mirrors.to_vec().into_boxed_slice()),
            name: "mnist",
            torchvision: "MNIST",
            classes: SETS[0].classes,
        }
    }

    fn get(set: &NamedSet, dir: &Path, first: Option<&str>) -> Result<PathBuf> {
        let second = Duration::from_secs(1);
        ensure_with(set, dir, first, &agent(second, second))
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_bad_mirror_is_passed_over_and_nothing_half_done_stays() {
        use Answer::*;
        for bad in [Corrupt, BreaksOff, Short, Long, NotFound, Stalls] {
            let dir = tempdir().unwrap();
            let set = set(&[serve(bad), serve(Good)]);
            let found = get(&set, dir.path(), None).unwrap();
            assert_eq!(found, dir.path().join("mnist"));
            let mut want = set.files.each_ref().map(|f| f.name);
            want.sort_unstable();
            assert_eq!(names(&found), want);
            for name in want {
                assert_eq!(fs::read(found.join(name)).unwrap(), content(name));
            }
        }
    }

    #[test]
    fn when_all_mirrors_fail_the_error_says_why_and_what_to_do() {
        use Answer::*;
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            format!("http://{}/", listener.local_addr().unwrap())
        };
        for (bad, why) in [
            (Some(Corrupt), "wrong checksum, SHA-256 "),
            (Some(BreaksOff), "broke off after 50013 of 100026 bytes"),
            (Some(Short), "offers 50013 bytes, wanted 100026"),
            (Some(Long), "sent more than 100026 bytes"),
            (Some(NotFound), "answered 404"),
            (Some(Stalls), "broke off after 50013 of 100026 bytes, timeout"),
            (None, "refused"),
        ] {
            let dir = tempdir().unwrap();
            let url = bad.map_or(closed.clone().leak() as &str, serve);
            let e = get(&set(&[url]), dir.path(), None).unwrap_err();
            let text = format!("{e:#}");
            let place = dir.path().join("mnist");
            for part in [
                "mnist is not on this machine",
                why,
                host(url),
                "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-",
                &format!("into {}", place.display()),
                "GANVAE_MIRROR",
            ] {
                assert!(text.contains(part), "`{part}` is not in: {text}");
            }
            assert!(!text.contains('\n') && (!place.exists() || names(&place).is_empty()), "{text}");
        }
    }

    #[test]
    fn the_named_mirror_comes_first_and_only_missing_files_are_fetched() {
        let dir = tempdir().unwrap();
        let own = dir.path().join("mnist");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("t10k-labels.idx1-ubyte"), "mine").unwrap();
        let first = format!("{}deep/", serve(Answer::Good));
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        second.set_nonblocking(true).unwrap();
        let url = format!("http://{}/", second.local_addr().unwrap()).leak();
        get(&set(&[url]), dir.path(), Some(&first)).unwrap();
        assert!(second.accept().is_err(), "the second mirror was asked");
        assert_eq!(names(&own).len(), 4);
        assert!(!own.join("t10k-labels-idx1-ubyte.gz").exists());
        // Now that all are there, no server is asked.
        assert_eq!(get(&set(&[]), dir.path(), None).unwrap(), own);
    }

    #[test]
    fn files_in_the_data_folder_itself_count_only_when_they_are_surely_the_set() {
        let dir = tempdir().unwrap();
        let offline = set(&[]);
        let put = |dir: &Path| {
            fs::create_dir_all(dir).unwrap();
            for file in &offline.files {
                fs::write(dir.join(file.name), "something else").unwrap();
            }
        };
        let some = dir.path().join("data");
        put(&some);
        let text = get(&offline, &some, None).unwrap_err().to_string();
        assert!(text.contains("data/mnist (move them if they are the ones"), "{text}");
        let labels = offline.files[1].name;
        fs::write(some.join(labels), content(labels)).unwrap();
        assert_eq!(get(&offline, &some, None).unwrap(), some);
        let named = dir.path().join("Mnist");
        put(&named);
        assert_eq!(get(&offline, &named, None).unwrap(), named);
        let raw = dir.path().join("MNIST/raw");
        put(&raw);
        assert_eq!(get(&offline, dir.path(), None).unwrap(), raw);
    }

    #[test]
    fn the_sets_are_well_formed() {
        for set in &SETS {
            assert!(find(set.name).is_some_and(|found| found.name == set.name));
            for (file, stem) in set.files.iter().zip(idx::STEMS) {
                assert_eq!(file.name.strip_suffix(".gz"), Some(stem));
                assert_eq!(file.sha256.len(), 64);
                assert!(file.sha256.bytes().all(|b| b"0123456789abcdef".contains(&b)));
            }
            for mirror in set.mirrors {
                assert!(mirror.starts_with("https://") && mirror.ends_with('/'));
            }
        }
        assert!(find("cifar").is_none());
    }
}
