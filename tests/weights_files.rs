//! Weights from files that nobody vouched for: what torch.save and torch.jit.save write is read as data, and nothing in it is executed.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::python::python;
use common::refused;
use ganvae::base::torch_file::{self, FileTensor};
use tch::{Kind, Tensor};

/// Writes the files into the current folder. `ran` would be a file that one of them writes when its code runs.
const WRITE: &str = r#"
import os, pickle, torch
torch.manual_seed(1)
net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
views = {"turned": base.t(), "part": base[1:3, 2:5], "whole": base, "scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3)}
torch.save(net.state_dict(), "state.pth")
torch.save(net.state_dict(), "state4.pth", pickle_protocol=4)
torch.save({"epoch": 3, "lr": 0.1, "state_dict": net.state_dict(), "optimizer": {"step": torch.tensor(1.)}}, "checkpoint.pth")
torch.save(views, "views.pth")
torch.save(torch.nn.ParameterDict({"w": torch.nn.Parameter(torch.ones(2))}), "parameters.pth")
torch.save({k: torch.ones(2, dtype=getattr(torch, k)) for k in
    ["float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool"]}, "kinds.pth")
torch.jit.script(net).save("module.pt")
odd = {"sparse": torch.eye(3).to_sparse(), "meta": torch.ones(2, device="meta"), "float8": torch.ones(2).to(torch.float8_e4m3fn),
    "complex": torch.ones(2, dtype=torch.complex64), "quantized": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}
for kind in ["uint16", "uint32", "uint64"]:
    odd[kind] = torch.ones(2).to(getattr(torch, kind))
torch.save({**odd, "weight": torch.ones(2)}, "odd.pth")
class Evil:
    def __reduce__(self):
        return (os.system, ("touch ran",))
torch.save({"weight": torch.ones(2), "more": Evil()}, "evil.pth")
class Hidden(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(3, 4)
    @torch.jit.export
    def __getstate__(self):
        return (self.fc1.weight, self.fc1.bias, self.training)
    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, torch.Tensor, bool]):
        while True:
            print("this runs")
    def forward(self, x):
        return self.fc1(x)
torch.jit.script(Hidden()).save("evil.pt")
torch.save(net.state_dict(), "old.pth", _use_new_zipfile_serialization=False)
"#;

fn read(dir: &Path, name: &str) -> Vec<FileTensor> {
    torch_file::read(&dir.join(name)).unwrap_or_else(|e| panic!("{name}: {e:#}"))
}

fn tensor<'a>(all: &'a [FileTensor], key: &str) -> &'a Tensor {
    let found = all.iter().find(|t| t.key == key).unwrap_or_else(|| panic!("{key} is not in {all:?}"));
    found.tensor.as_ref().unwrap_or_else(|| panic!("{key} was not read"))
}

#[test]
fn files_of_pytorch_are_read_as_data() {
    let Some(python) = python() else { return };
    let dir = tempfile::tempdir().unwrap();
    let d = dir.path();
    // TorchScript compiles from the source, which must be a file.
    fs::write(d.join("write.py"), WRITE).unwrap();
    let out = Command::new(&python).arg("write.py").current_dir(d).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out.stderr));

    let state = read(d, "state.pth");
    let keys: Vec<_> = state.iter().map(|t| t.key.as_str()).collect();
    let want = ["0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"];
    assert_eq!(keys, want);
    assert_eq!(tensor(&state, "0.weight").size(), [4, 3]);
    // The same numbers from every kind of file.
    for name in ["state4.pth", "checkpoint.pth", "module.pt"] {
        let other = read(d, name);
        for key in &want {
            assert_eq!(tensor(&other, key), tensor(&state, key), "{name}, {key}");
        }
        assert_eq!(other.len(), want.len(), "{name}: {other:?}");
    }

    let views = read(d, "views.pth");
    let base = Tensor::arange(24, (Kind::Float, tch::Device::Cpu)).view([4, 6]);
    assert_eq!(*tensor(&views, "whole"), base);
    assert_eq!(*tensor(&views, "turned"), base.tr());
    assert_eq!(*tensor(&views, "part"), base.narrow(0, 1, 2).narrow(1, 2, 3));
    assert_eq!((tensor(&views, "scalar").size(), tensor(&views, "scalar").double_value(&[])), (vec![], 2.5));
    assert_eq!(tensor(&views, "empty").size(), [0, 3]);
    let kinds = read(d, "kinds.pth");
    assert_eq!(kinds.len(), 9);
    assert!(kinds.iter().all(|t| tensor(&kinds, &t.key).to_kind(Kind::Float) == Tensor::from_slice(&[1f32, 1.0])));

    let odd = read(d, "odd.pth");
    assert_eq!(*tensor(&odd, "weight"), Tensor::from_slice(&[1f32, 1.0]));
    assert_eq!(odd.iter().filter(|t| t.tensor.is_none()).count(), odd.len() - 1, "{odd:?}");
    assert_eq!(odd.len(), 9, "each is named: {odd:?}");

    let evil = read(d, "evil.pth");
    assert_eq!((evil.len(), tensor(&evil, "weight").size()), (1, vec![2]));
    assert!(!d.join("ran").exists(), "code of the file was executed");
    // Its tensors are in a tuple that only its own code could give names to.
    assert_eq!(read(d, "evil.pt").len(), 0);
    for (name, part) in
        [("evil.pt", "none of its tensors fits"), ("old.pth", "before 1.6"), ("odd.pth", "none of its tensors fits")]
    {
        refused(
            d,
            &["train", "vae", "--train-limit", "64", "--test-limit", "8", "--init-from", name, "--out", "r"],
            1,
            &[part],
        );
    }
}
