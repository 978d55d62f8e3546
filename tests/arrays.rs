//! Array formats against what NumPy and pickle write, and what the program says about files that are wrong.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;

use common::python::{numpy, run};
use common::{ganvae, refused, text};
use ganvae::data::arrays::{self, ArrayKind, Arrays};

fn load(path: &Path) -> Arrays {
    let kind = arrays::recognise(path).unwrap_or_else(|e| panic!("{e:#}"));
    kind.unwrap_or_else(|| panic!("{} is not recognised", path.display())).load().unwrap_or_else(|e| panic!("{e:#}"))
}

/// The error of a set, without the folder in it; it is one line.
fn error(dir: &Path, name: &str) -> String {
    let result = arrays::recognise(&dir.join(name)).and_then(|kind| kind.unwrap().load());
    let text = format!("{:#}", result.expect_err(name));
    assert!(!text.contains('\n'), "{text}");
    text.replace(&format!("{}/", dir.display()), "")
}

#[track_caller]
fn has(text: &str, parts: &str) {
    assert!(parts.split(" .. ").all(|part| text.contains(part)), "`{parts}` is not in: {text}");
}

/// Image k of `x` [3,2,4] is 100k + 10h + w.
const NUMPY: &str = r#"
import numpy as np
x = (100 * np.arange(3)[:, None, None] + 10 * np.arange(2)[:, None] + np.arange(4)).astype("u1")
save = np.save
for t in ["u1", "i2", ">i4", "u8", ">u2", "i8"]:
    save(f"int-{t.replace('>', 'big-')}.npy", x.astype(t))
for t in ["f2", "f4", "f8", ">f4", ">f8"]:
    save(f"float-{t.replace('>', 'big-')}.npy", (x / 255).astype(t))
save("fortran.npy", np.asfortranarray(x))
save("fortran-f4.npy", np.asfortranarray((x / 255).astype("f4")))
with open("version2.npy", "wb") as f:
    np.lib.format.write_array(f, x, version=(2, 0))
c = np.stack([x, x + 1, x + 2], axis=-1)
save("last.npy", c)
save("first.npy", np.moveaxis(c, -1, 1).copy())
save("view.npy", np.moveaxis(c, -1, 1))
save("grey-last.npy", x[..., None])
save("grey-first.npy", x[:, None])
save("bool.npy", x > 103)
save("binary.npy", (x > 103).astype("u1"))
save("rows.npy", x[:, :2, :2].reshape(3, 4))
y = np.array([2, 0, 1])
np.savez("keras.npz", x_train=x, y_train=y, x_test=x[:1], y_test=y[:1])
np.savez_compressed("medmnist.npz", train_images=c, train_labels=y[:, None].astype("u1"), val_images=c[:2],
    val_labels=y[:2, None], test_images=c[1:2], test_labels=y[1:2, None])
np.savez("plain.npz", images=x, labels=y.astype("f8"))
np.savez("xy.npz", X=x, y=np.eye(3)[y])
np.savez("val.npz", train_images=x, val_images=x[2:], more=y)
np.savez("single.npz", anything=x)
np.savez("many.npz", train_images=x, train_labels=np.array([[1, 1, 0], [0, 0, 0], [0, 1, 1]]))
np.savez("half.npz", x_train=x, y_train=y, x_test=x[:1])
import os
os.mkdir("folder")
save("folder/x_train.npy", x); save("folder/y_train.npy", y); save("folder/x_test.npy", x[:1]); save("folder/y_test.npy", y[:1])
os.mkdir("k49")
np.savez_compressed("k49/k49-train-imgs.npz", x); np.savez_compressed("k49/k49-train-labels.npz", y.astype("u1"))
np.savez_compressed("k49/k49-test-imgs.npz", x[1:]); np.savez_compressed("k49/k49-test-labels.npz", y[1:].astype("u1"))
# What is wrong.
save("bytes-as-floats.npy", x.astype("f4")); save("tanh.npy", (x / 127.5 - 1).astype("f8")); save("wild.npy", x * 1e9)
n = (x / 255).astype("f4"); n[1, 0, 2] = np.nan; save("nan.npy", n)
save("sixteen.npy", x.astype("u2") * 257); save("negative.npy", x.astype("i2") - 1)
save("complex.npy", x.astype("c8")); save("text.npy", np.array(["a", "b"])); save("long.npy", x.astype("f16" if hasattr(np, "float128") else "c16"))
np.save("object.npy", np.array([x, None], dtype=object), allow_pickle=True)
save("structured.npy", np.zeros(3, dtype=[("a", "f4"), ("b", "u1")]))
save("one.npy", np.zeros((64, 64, 3), "u1")); save("five.npy", np.zeros((1, 2, 3, 4, 5), "u1")); save("two.npy", np.zeros((2, 8, 8, 2), "u1")); save("rgba.npy", np.arange(512, dtype="u2").astype("u1").reshape(2, 8, 8, 4))
save("either.npy", np.zeros((2, 3, 8, 3), "u1")); save("empty.npy", np.zeros((0, 8, 8), "u1")); save("wide.npy", np.zeros((2, 12), "u1"))
np.savez("nothing.npz", a=x, b=y); np.savez("twice.npz", images=x, data=x); np.savez("count.npz", images=x, labels=y[:2])
np.savez("classes.npz", images=x, labels=np.array([0, 1, 70000])); np.savez("signed.npz", images=x, labels=np.array([0, -1, 1]))
np.savez("sizes.npz", x_train=x, x_test=x[:, :1])
np.savez("part.npz", images=x, labels=np.array([0.0, 0.5, 1.0]))
"#;

/// Image k in grey, plus `channel`.
fn image(k: u8, channel: u8) -> Vec<u8> {
    (0..2).flat_map(|h| (0..4).map(move |w| 100u8.wrapping_mul(k).wrapping_add(10 * h + w + channel))).collect()
}

fn grey() -> Vec<u8> {
    (0..3).flat_map(|k| image(k, 0)).collect()
}

#[test]
fn numpy_arrays_of_every_type_and_order_are_the_same_images() {
    let Some(python) = numpy() else { return };
    let dir = tempfile::tempdir().unwrap();
    run(&python, NUMPY, dir.path());
    let at = |name: &str| dir.path().join(name);
    let mut seen = 0;
    for file in fs::read_dir(dir.path()).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        let same = ["int-", "float-", "fortran", "version2", "grey-", "single"];
        if same.iter().any(|start| name.starts_with(start)) {
            let set = load(&at(&name));
            assert_eq!(
                (set.train.count, set.train.channels, set.train.height, set.train.width),
                (3, 1, 2, 4),
                "{name}"
            );
            assert_eq!(set.train.pixels, grey(), "{name}");
            assert!(set.test.is_none() && set.classes.is_empty() && set.notes.is_empty(), "{name}: {:?}", set.notes);
            seen += 1;
        }
    }
    assert_eq!(seen, 17);
    let colour: Vec<u8> = (0..3).flat_map(|k| (0..3).flat_map(move |c| image(k, c))).collect();
    for name in ["last.npy", "first.npy", "view.npy"] {
        let train = load(&at(name)).train;
        assert_eq!((train.channels, train.height, train.width), (3, 2, 4), "{name}");
        assert_eq!(train.pixels, colour, "{name}");
    }
    // A value above 103 is white: 110 to 113, and 200 on.
    let binary: Vec<u8> = grey().iter().map(|v| if *v > 103 { 255 } else { 0 }).collect();
    assert_eq!(load(&at("bool.npy")).train.pixels, binary);
    let ones = load(&at("binary.npy"));
    assert_eq!(ones.train.pixels, binary);
    has(&ones.notes.join("\n"), "binary.npy: no value is above 1, so 1 is read as white");
    let rows = load(&at("rows.npy")).train;
    assert_eq!((rows.height, rows.width, rows.pixels[4..8].to_vec()), (2, 2, vec![100, 101, 110, 111]));

    for (name, channels) in [("keras.npz", 1), ("medmnist.npz", 3), ("folder", 1), ("k49", 1)] {
        let set = load(&at(name));
        let test = set.test.unwrap();
        assert_eq!(
            (set.train.channels, set.train.labels, set.classes.join("")),
            (channels, vec![2, 0, 1], "012".into()),
            "{name}"
        );
        let start = if name == "keras.npz" || name == "folder" { (2, image(0, 0)) } else { (0, image(1, 0)) };
        assert_eq!((test.labels[0], test.pixels[..8].to_vec()), start, "{name}");
        assert_eq!(set.notes.is_empty(), name != "medmnist.npz");
    }
    has(&load(&at("medmnist.npz")).notes.join("\n"), "not used: val_images, val_labels");
    for name in ["plain.npz", "xy.npz"] {
        let set = load(&at(name));
        assert_eq!(
            (set.train.labels, set.train.pixels.to_vec(), set.test.is_none()),
            (vec![2, 0, 1], grey(), true),
            "{name}"
        );
    }
    let val = load(&at("val.npz"));
    assert_eq!(val.test.unwrap().pixels, image(2, 0));
    has(&val.notes.join("\n"), "not used: more");
    let many = load(&at("many.npz"));
    assert!(many.train.labels.is_empty());
    has(&many.notes.join("\n"), "3 labels for each image name no class, so the images are read without labels");
    let half = load(&at("half.npz"));
    assert!(half.train.labels.is_empty() && half.test.is_some());
    has(&half.notes.join("\n"), "x_test.npy has no labels");

    let rgba = load(&at("rgba.npy")).train;
    assert_eq!((rgba.channels, &rgba.pixels[192..196]), (4, &[3, 7, 11, 15][..]), "the alpha plane of the first image");

    let cut = fs::read(at("int-u1.npy")).unwrap();
    fs::write(at("cut.npy"), &cut[..cut.len() - 5]).unwrap();
    fs::write(at("more.npy"), [&cut[..], b"x"].concat()).unwrap();
    fs::write(at("header.npy"), &cut[..50]).unwrap();
    fs::write(at("keys.npy"), [&b"\x93NUMPY\x01\0\x04\0{ }\n"[..], &[0; 9]].concat()).unwrap();
    let mut bad = fs::read(at("plain.npz")).unwrap();
    let place = bad.windows(8).position(|w| w == image(0, 0)).unwrap();
    bad[place] ^= 1;
    fs::write(at("crc.npz"), bad).unwrap();
    for (name, parts) in [
        ("bytes-as-floats.npy", "found floats from 0 to 213 at byte 128, wanted floats in [0,1]; divide by 255"),
        ("tanh.npy", "found floats from -1 to 0.67 .. at byte 128 .. save (x + 1) / 2"),
        ("wild.npy", "floats from 0 to .. bring them into this range"),
        ("nan.npy", "found NaN at byte 168, wanted finite numbers"),
        ("sixteen.npy", "found integers from 0 to 54741 at byte 128, wanted 0 to 255; divide 16-bit values by 257"),
        ("negative.npy", "found integers from -1 to 212 at byte 128"),
        ("complex.npy", "numbers of type \"<c8\" .. save the images as uint8"),
        ("text.npy", "numbers of type \"<U1\" at byte 128"),
        ("long.npy", "numbers of type \"<"),
        ("object.npy", "numbers of type \"|O\""),
        ("structured.npy", "numbers of type \"[('a', '<f4')"),
        ("one.npy", "shape 64x64x3, which looks like one colour picture"),
        ("five.npy", "shape 1x2x3x4x5: wanted"),
        ("two.npy", "shape 2x8x8x2: wanted N x H x W"),
        ("either.npy", "may be N x C x H x W as well as"),
        ("empty.npy", "shape 0x8x8, which holds no pixels"),
        ("wide.npy", "rows of 12 numbers are no square grey images"),
        (
            "nothing.npz",
            "holds the arrays a (|u1, 3x2x4), b (<i8, 3), and none is called images: save .. numpy.savez(\"images.npz\"",
        ),
        ("twice.npz", "the arrays images and data may both be the images wanted: leave one"),
        ("count.npz", "labels.npy holds 2 labels but .. images.npy holds 3 images"),
        ("classes.npz", "found label 70000 at byte 144, wanted 0 to 65535; number the classes from 0"),
        ("signed.npz", "found label -1 at byte 136"),
        ("part.npz", "found label 0.5 at byte 136"),
        ("sizes.npz", "x_train.npy holds images of 1x2x4 but .. of 1x1x4"),
        (
            "cut.npy",
            "found shape 3x2x4 of |u1 at byte 128, wanted one that fits the 147 bytes of the file; the file is incomplete",
        ),
        ("more.npy", "wanted one that fits the 153 bytes"),
        ("header.npy", "found the end of the data at byte 50, wanted 128 bytes"),
        ("keys.npy", "a header without descr, fortran_order and shape at byte 10"),
        ("crc.npz", "images.npy .. damaged data .. checksum"),
    ] {
        let text = error(dir.path(), name);
        assert!(text.contains(name), "{text}");
        has(&text, parts);
    }
}

/// Batches of both pickled versions, image i of batch b being b + i everywhere but for its first pixel, 255. Protocol 2 is what the
/// published files are in, by Python 2; `U` and `T` are its strings.
const CIFAR: &str = r#"
import os, pickle, struct, sys, tarfile
import numpy as np
def batch(b, n, key, protocol):
    data = np.repeat(np.arange(n, dtype="u1")[:, None] + np.uint8(b), 3072, axis=1)
    data[:, 0] = 255
    return {"batch_label": "a batch", key: [i % 10 for i in range(n)], "data": data, "filenames": ["a.png"] * n}
class Python2(pickle._Pickler):
    # As cPickle of Python 2 wrote str, and as NumPy did then.
    dispatch = dict(pickle._Pickler.dispatch)
    def save_str(self, obj, raw=None):
        raw = obj.encode() if raw is None else raw
        self.write(b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + struct.pack("<i", len(raw)) + raw)
        self.memoize(obj)
    dispatch[str] = save_str
    dispatch[bytes] = lambda self, obj: self.save_str(obj, obj)
def dump(obj, path, protocol):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        Python2(f, 2).dump(obj) if protocol == "python2" else pickle.dump(obj, f, protocol)
for protocol in ["python2", 2, 3, 4, 5]:
    ten = f"ten-{protocol}/cifar-10-batches-py"
    for b in range(1, 6):
        dump(batch(b, b, "labels", protocol), f"{ten}/data_batch_{b}", protocol)
    dump(batch(9, 2, "labels", protocol), f"{ten}/test_batch", protocol)
    dump({"label_names": list("abcdefghij"), "num_vis": 3072}, f"{ten}/batches.meta", protocol)
    hundred = f"hundred-{protocol}"
    dump({**batch(1, 3, "fine_labels", protocol), "coarse_labels": [5] * 3}, f"{hundred}/train", protocol)
    dump(batch(7, 2, "fine_labels", protocol), f"{hundred}/test", protocol)
    dump({"fine_label_names": [f"n{i}" for i in range(100)], "coarse_label_names": ["c"]}, f"{hundred}/meta", protocol)
with tarfile.open("cifar-10-python.tar.gz", "w:gz") as t:
    t.add("ten-python2/cifar-10-batches-py", "cifar-10-batches-py")
class Evil:
    def __reduce__(self):
        return (os.system, ("touch ran",))
import shutil
def harmed(name, change):
    shutil.copytree("hundred-4", name)
    change(name)
harmed("evil", lambda d: dump(Evil(), f"{d}/train", 4))
harmed("evil-data", lambda d: dump({**batch(1, 3, "fine_labels", 4), "data": Evil()}, f"{d}/train", 4))
harmed("floats", lambda d: dump({**batch(1, 3, "fine_labels", 4), "data": np.zeros((3, 3072), "f4")}, f"{d}/train", 4))
harmed("short", lambda d: dump({**batch(1, 3, "fine_labels", 4), "data": np.zeros((3, 3071), "u1")}, f"{d}/train", 4))
harmed("labels", lambda d: dump({**batch(1, 3, "fine_labels", 4), "fine_labels": [1, 2, 100]}, f"{d}/train", 4))
harmed("fewer", lambda d: dump({**batch(1, 3, "fine_labels", 4), "fine_labels": [1, 2]}, f"{d}/train", 4))
harmed("cut", lambda d: open(f"{d}/train", "r+b").truncate(5000))
harmed("names", lambda d: dump({"fine_label_names": ["a"]}, f"{d}/meta", 4))
"#;

#[test]
fn pickled_cifar_is_read_as_data() {
    let Some(python) = numpy() else { return };
    let dir = tempfile::tempdir().unwrap();
    run(&python, CIFAR, dir.path());
    let at = |name: String| dir.path().join(name);
    for protocol in ["python2", "2", "3", "4", "5"] {
        let ten = load(&at(format!("ten-{protocol}")));
        let test = ten.test.unwrap();
        assert_eq!((ten.train.count, test.count, ten.classes.concat()), (15, 2, "abcdefghij".into()), "{protocol}");
        assert_eq!(ten.train.labels, [0, 0, 1, 0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 4]);
        // Image 13 is image 3 of batch 5.
        let image = &ten.train.pixels[13 * 3072..14 * 3072];
        assert_eq!([image[0], image[1], image[3071]], [255, 8, 8], "{protocol}");
        assert_eq!(test.pixels[3072..3074], [255, 10]);
        let hundred = load(&at(format!("hundred-{protocol}")));
        assert_eq!((hundred.train.count, hundred.classes.len(), &*hundred.classes[99]), (3, 100, "n99"), "{protocol}");
        assert_eq!(hundred.train.labels, [0, 1, 2]);
    }
    assert_eq!(load(&at("cifar-10-python.tar.gz".into())).train.count, 15);
    for (name, parts) in [
        (
            "evil",
            "evil/train is not of CIFAR-100's Python version, so unpack cifar-100-python.tar.gz again: it has no data",
        ),
        ("evil-data", "its data is no array of bytes"),
        ("floats", "its data is no array of bytes"),
        ("short", "its data has the shape [3, 3071] and 9213 bytes, wanted N x 3072"),
        ("labels", "it holds the label 100, wanted 0 to 99"),
        ("fewer", "it holds 2 labels for 3 images"),
        ("cut", "is damaged at byte .. ends too early"),
        ("names", "names/meta holds 1 names, wanted 100"),
    ] {
        has(&error(dir.path(), name), parts);
    }
    assert!(!at("ran".into()).exists() && !Path::new("ran").exists(), "the code in a pickle ran");
    fs::rename(at("ten-4/cifar-10-batches-py".into()), at("hundred-4/cifar-10-batches-py".into())).unwrap();
    let several = format!("{:#}", arrays::recognise(&at("hundred-4".into())).unwrap_err());
    has(&several, "hundred-4 holds 2 data sets, in .. cifar-10-batches-py and .. give the folder of one");
}

#[test]
fn the_binary_version_of_cifar_100_has_fine_labels() {
    let dir = tempfile::tempdir().unwrap();
    let record = |coarse: u8, fine: u8, pixel: u8| [vec![coarse, fine], vec![pixel; 3072]].concat();
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    put("train.bin", &[record(1, 99, 3), record(2, 4, 5)].concat());
    put("test.bin", &record(3, 0, 7));
    assert!(arrays::recognise(dir.path()).unwrap().is_none(), "two names that say little");
    let names: Vec<_> = (0..100).map(|i| format!("n{i}\n")).collect();
    put("fine_label_names.txt", names.concat().as_bytes());
    let set = load(dir.path());
    assert_eq!((set.train.labels, set.train.pixels[3072], set.test.unwrap().labels), (vec![99, 4], 5, vec![0]));
    assert_eq!(set.classes[99], "n99");
    put("test.bin", &record(3, 100, 7));
    has(
        &error(dir.path().parent().unwrap(), dir.path().file_name().unwrap().to_str().unwrap()),
        "test.bin: found label 100 at byte 1, wanted 0 to 99",
    );
}

/// An IDX file of bytes.
fn idx(sizes: &[u32], data: &[u8]) -> Vec<u8> {
    let sizes_of: Vec<u8> = sizes.iter().flat_map(|size| size.to_be_bytes()).collect();
    [&[0, 0, 8, sizes.len() as u8], &sizes_of[..], data].concat()
}

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let bytes = if name.ends_with(".gz") {
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(bytes).unwrap();
        out.finish().unwrap()
    } else {
        bytes.to_vec()
    };
    fs::write(path, bytes).unwrap();
}

#[test]
fn idx_files_are_found_where_torchvision_puts_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let images = idx(&[2, 1, 3], &[0, 1, 2, 3, 4, 5]);
    put(root, "MNIST/raw/train-images-idx3-ubyte", &images);
    put(root, "MNIST/raw/train-images-idx3-ubyte.gz", b"not read, because the plain file is there");
    put(root, "MNIST/raw/train-labels-idx1-ubyte", &idx(&[2], &[1, 0]));
    put(root, "MNIST/raw/t10k-images-idx3-ubyte", &idx(&[1, 1, 3], &[7, 8, 9]));
    put(root, "MNIST/raw/t10k-labels-idx1-ubyte", &idx(&[1], &[1]));
    for path in
        [root.to_owned(), root.join("MNIST"), root.join("MNIST/raw"), root.join("MNIST/raw/train-images-idx3-ubyte")]
    {
        let set = load(&path);
        assert_eq!(
            (set.train.labels, set.test.unwrap().pixels.to_vec(), set.notes.len()),
            (vec![1, 0], vec![7, 8, 9], 0)
        );
    }
    let alone = load(&root.join("MNIST/raw/t10k-images-idx3-ubyte"));
    assert_eq!((alone.train.labels, alone.test.is_none()), (vec![1], true));
    put(root, "KMNIST/raw/train-images-idx3-ubyte", &images);
    let several = format!("{:#}", arrays::recognise(root).unwrap_err());
    has(
        &several,
        "holds 2 sets of IDX files: give the file of the training images of one, such as .. KMNIST/raw/train-images-idx3-ubyte",
    );
    // Without labels and held-out images.
    let bare = load(&root.join("KMNIST"));
    assert!(bare.train.labels.is_empty() && bare.test.is_none() && bare.classes.is_empty());
    has(&bare.notes.join("\n"), "raw has no train-labels-idx1-ubyte and no t10k-images-idx3-ubyte and no t10k-labels");
    fs::remove_file(root.join("MNIST/raw/t10k-labels-idx1-ubyte")).unwrap();
    let half = load(&root.join("MNIST"));
    assert!(half.train.labels.is_empty() && half.test.unwrap().labels.is_empty() && half.classes.is_empty());
    has(
        &half.notes.join("\n"),
        "raw has no t10k-labels-idx1-ubyte .. has no labels: those of the other images are not used",
    );
    // Colour, in either order, and a file of any name.
    put(root, "one/colours.bin.gz", &idx(&[1, 2, 1, 3], &[1, 2, 3, 4, 5, 6]));
    let colour = load(&root.join("one/colours.bin.gz")).train;
    assert_eq!((colour.channels, colour.height, colour.pixels.to_vec()), (3, 2, vec![1, 4, 2, 5, 3, 6]));
    has(&error(root, "MNIST/raw/train-labels-idx1-ubyte"), "a label file) at byte 3 .. give the file of images");
}

#[test]
fn emnist_is_turned_upright_and_its_sets_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for set in ["letters", "mnist"] {
        // Stored by columns: the first three bytes are the left column of 3x2 pixels.
        put(root, &format!("emnist-{set}-train-images-idx3-ubyte.gz"), &idx(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]));
        put(root, &format!("emnist-{set}-train-labels-idx1-ubyte.gz"), &idx(&[1], &[2]));
        put(root, &format!("emnist-{set}-test-images-idx3-ubyte.gz"), &idx(&[1, 2, 3], &[1, 2, 3, 4, 5, 6]));
        put(root, &format!("emnist-{set}-test-labels-idx1-ubyte.gz"), &idx(&[1], &[1]));
    }
    put(root, "emnist-letters-mapping.txt", b"1 65 97\n2 66 98\n");
    let several = format!("{:#}", arrays::recognise(root).unwrap_err());
    has(&several, "holds 2 sets of IDX files: give the file .. emnist-letters-train-images-idx3-ubyte.gz");
    let set = load(&root.join("emnist-letters-train-images-idx3-ubyte.gz"));
    assert_eq!((set.train.height, set.train.width, set.train.pixels.to_vec()), (3, 2, vec![1, 4, 2, 5, 3, 6]));
    assert_eq!(
        (set.test.unwrap().labels, set.train.labels, set.classes),
        (vec![1], vec![2], ["0", "A", "B"].map(String::from).to_vec())
    );
    let digits = load(&root.join("emnist-mnist-train-images-idx3-ubyte.gz"));
    assert_eq!(digits.classes, ["0", "1", "2"]);
    put(root, "emnist-letters-mapping.txt", b"1 65\nx\n");
    has(
        &error(root, "emnist-letters-train-images-idx3-ubyte.gz"),
        "mapping.txt: found \"x\" on line 2, wanted a class and a code point",
    );
}

#[test]
fn folders_of_rows_are_a_training_and_a_held_out_set() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "mnist_train.csv.gz", b"label,1,2,3,4\n3,1,2,3,4\n0,5,6,7,8\n");
    put(dir.path(), "mnist_test.csv", b"1,9,9,9,9\n");
    let set = load(dir.path());
    assert_eq!((set.train.labels, set.test.unwrap().pixels.to_vec(), set.classes.len()), (vec![3, 0], vec![9; 4], 4));
    put(dir.path(), "mnist_test.csv", b"pixel0,b,c,d\n9,9,9,9\n");
    let kaggle = load(dir.path());
    assert_eq!((kaggle.train.labels, kaggle.test.is_none()), (vec![3, 0], true));
    has(&kaggle.notes.join("\n"), "mnist_test.csv has no labels, so it is not used");
}

#[test]
fn a_folder_of_pictures_or_an_archive_of_them_is_no_array() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "pictures/a.png", b"x");
    put(dir.path(), "pictures/latents.npy", b"x");
    put(dir.path(), "pictures.tar", b"x");
    for name in ["pictures", "pictures.tar", "none"] {
        assert!(arrays::recognise(&dir.path().join(name)).unwrap().is_none(), "{name}");
    }
}

#[test]
fn the_program_describes_and_trains_on_arrays() {
    let dir = tempfile::tempdir().unwrap();
    let header = |text: &str| {
        let text = format!("{text:<117}\n");
        [b"\x93NUMPY\x01\0", &(text.len() as u16).to_le_bytes()[..], text.as_bytes()].concat()
    };
    let pixels: Vec<u8> = (0..40 * 8 * 8).map(|i| (i % 251) as u8).collect();
    let array = [header("{'descr': '|u1', 'fortran_order': False, 'shape': (40, 8, 8), }"), pixels].concat();
    put(dir.path(), "images.npy", &array);
    assert!(matches!(arrays::recognise(&dir.path().join("images.npy")).unwrap(), Some(ArrayKind::Numpy(_))));
    let out = ganvae(dir.path(), &["data", "images.npy", "--out", "preview.png"]);
    let said = text(&out.stdout) + &text(&out.stderr);
    has(&said, "shape     1x8x8 .. train     36 images .. test      4 images");
    let out = ganvae(dir.path(), &["data", "images.npy", "--image-size", "4x6", "--channels", "3"]);
    has(&text(&out.stdout), "shape     3x4x6");
    let train = [
        "train",
        "vae",
        "--data",
        "images.npy",
        "--steps",
        "2",
        "--device",
        "cpu",
        "--out",
        "run",
        "--batch-size",
        "8",
    ];
    let out = ganvae(dir.path(), &train);
    assert!(out.status.success(), "{}", text(&out.stderr));
    put(dir.path(), "a.pdf", b"%PDF-1.7");
    refused(dir.path(), &["data", "a.pdf"], 2, &["--data a.pdf: it is a PDF document, which is not read: extract"]);
}
