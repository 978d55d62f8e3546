//! TorchScript modules on disk: written with real sub-modules, parameters and buffers, which tracing would freeze into constants.

use std::ffi::c_void;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};
use tch::{CModule, Device, Tensor};

use super::{Handle, List, ToShim, shim};
use crate::base::{atomic_file, torch_file};

/// Name of the description among a module's extra files.
const DESCRIPTION: &str = "ganvae.json";

/// A sub-module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submodule {
    /// Its name in the whole, and the first part of its tensors' keys.
    pub name: String,
    /// What it is (`Linear`): the name of its class.
    pub kind: &'static str,
    /// Its methods, as TorchScript source.
    pub methods: String,
}

/// A sub-module, laid out as in C++.
#[repr(C)]
struct Part {
    name: List<u8>,
    kind: List<u8>,
    methods: List<u8>,
}

/// A tensor and its key, laid out as in C++.
#[repr(C)]
struct Entry {
    key: List<u8>,
    value: Handle,
    parameter: bool,
}

shim! {
    fn save(
        file: &[u8], name: &str, described: &str, description: &str, methods: &str, parts: &[Part], entries: &[Entry],
    ) -> Result<()> = gv_script_save, "TorchScript";
    fn open(file: &[u8], part: &str, cuda_index: i64) -> Result<*mut c_void> = gv_script_open, "TorchScript";
    fn close(module: *mut c_void) -> Result<()> = gv_script_close, "TorchScript";
    fn takes(module: *mut c_void, parameter: &str) -> Result<bool> = gv_script_takes, "TorchScript";
    fn call(module: *mut c_void, x: &Tensor, on: &str) -> Result<Tensor> = gv_script_call, "TorchScript";
}

/// A TorchScript module of any origin, in evaluation mode.
#[derive(Debug)]
pub struct ScriptModule(*mut c_void);

impl ScriptModule {
    /// The module of a file, or its sub-module `part`, on a device.
    ///
    /// # Errors
    /// libtorch's, when the file cannot be read, is no TorchScript module, or has no such part.
    pub fn open(path: &Path, part: Option<&str>, device: Device) -> Result<Self> {
        let index = if let Device::Cuda(index) = device { index as i64 } else { -1 };
        Ok(ScriptModule(open(path.as_os_str().as_bytes(), part.unwrap_or_default(), index)?))
    }

    /// Whether its `forward` has a parameter of this name.
    ///
    /// # Errors
    /// libtorch's, when it has no `forward`.
    pub fn takes(&self, parameter: &str) -> Result<bool> {
        takes(self.0, parameter)
    }

    /// `forward(x)` without gradients, with the parameter `on` set to true if given.
    ///
    /// # Errors
    /// libtorch's; when the result is no tensor.
    pub fn call(&self, x: &Tensor, on: Option<&str>) -> Result<Tensor> {
        call(self.0, x, on.unwrap_or_default())
    }
}

impl Drop for ScriptModule {
    fn drop(&mut self) {
        // It cannot fail: the module is this value's own.
        let _ = close(self.0);
    }
}

/// Loads a TorchScript module.
///
/// # Errors
/// libtorch's, when the file cannot be read or is no TorchScript module.
pub fn load_script(path: &Path, device: Device) -> Result<CModule> {
    match path.to_str() {
        Some(path) => Ok(CModule::load_on_device(path, device)?),
        // tch passes on file names in UTF-8 only.
        None => Ok(CModule::load_data_on_device(&mut File::open(path)?, device)?),
    }
}

/// Writes a TorchScript module of class `name` in evaluation mode: `parts` as sub-modules, `tensors` (key PART.NAME, value, whether
/// it is a parameter) in them as dense float32 on the CPU, `methods` (with a `forward`) of the whole, and `description` as an extra file
/// and as the attribute `ganvae`.
///
/// # Errors
/// libtorch's: source that does not compile, a file that cannot be written.
pub fn save_script(
    path: &Path,
    name: &str,
    description: &str,
    methods: &str,
    parts: &[Submodule],
    tensors: &[(String, Tensor, bool)],
) -> Result<()> {
    let part = |p: &Submodule| Part { name: p.name.to_shim(), kind: p.kind.to_shim(), methods: p.methods.to_shim() };
    let entry = |(key, t, parameter): &(String, Tensor, bool)| Entry {
        key: key.to_shim(),
        value: t.to_shim(),
        parameter: *parameter,
    };
    let (parts, entries): (Vec<_>, Vec<_>) = (parts.iter().map(part).collect(), tensors.iter().map(entry).collect());
    save(path.as_os_str().as_bytes(), name, DESCRIPTION, description, methods, &parts, &entries)?;
    Ok(atomic_file::sync(path)?)
}

/// The description that [`save_script`] wrote into a module's file, also after Python has saved the module again; none in other modules.
///
/// # Errors
/// When the file cannot be read or is no TorchScript module.
pub fn script_description(path: &Path) -> Result<Option<String>> {
    torch_file::extra_file(path, DESCRIPTION).context("TorchScript")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    const LINEAR: &str = "def forward(self, x):\n  return torch.linear(x, self.weight, self.bias)\n";

    fn saved(methods: &str) -> Result<(tempfile::TempDir, std::path::PathBuf, Tensor)> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("m.pt");
        let w = Tensor::rand([3, 2], (Kind::Float, tch::Device::Cpu)).tr().contiguous();
        let tensors = [
            ("fc.weight".to_owned(), w.shallow_clone(), true),
            ("fc.bias".to_owned(), Tensor::from_slice(&[1f32, 2.0]), true),
            ("fc2.seen".to_owned(), Tensor::from_slice(&[5f32]), false),
        ];
        let part = |name: &str, methods: &str| Submodule { name: name.into(), kind: "Linear", methods: methods.into() };
        let parts = [part("fc", LINEAR), part("fc2", "def forward(self, x):\n  return x + self.seen\n")];
        save_script(&path, "Thing", "{\"a\":1}", methods, &parts, &tensors)?;
        Ok((dir, path, w))
    }

    #[test]
    fn a_module_comes_back_with_its_tensors_its_description_and_its_function() -> Result<()> {
        let (dir, path, w) =
            saved("def forward(self, x):\n  x = self.fc.forward(x)\n  return (x, self.fc2.forward(x) * 2.0 - 1.0)\n")?;
        assert_eq!(script_description(&path)?.as_deref(), Some("{\"a\":1}"));
        let tensors = crate::base::torch_file::read(&path)?;
        let keys: Vec<_> = tensors.iter().map(|t| t.key.as_str()).collect();
        assert_eq!(keys, ["fc.weight", "fc.bias", "fc2.seen"]);
        assert_eq!(tensors[0].tensor.as_ref(), Some(&w));
        let x = Tensor::rand([5, 3], (Kind::Float, tch::Device::Cpu));
        let want = x.linear(&w, Some(&Tensor::from_slice(&[1f32, 2.0])));
        let got = <(Tensor, Tensor)>::try_from(CModule::load(&path)?.forward_is(&[tch::IValue::from(x)])?)?;
        assert_eq!(got.0, want);
        assert_eq!(got.1, (&want + 5.0) * 2.0 - 1.0);
        let e = script_description(&dir.path().join("none.pt")).unwrap_err().to_string();
        assert!(e.contains("TorchScript"), "{e}");
        Ok(())
    }

    #[test]
    fn invalid_modules_are_errors() -> Result<()> {
        assert!(saved("def forward(self, x):\n  return torch.no_such_thing(x)\n").is_err());
        let (_dir, path, _) = saved("def forward(self, x):\n  return self.fc.forward(x)\n")?;
        let bytes = std::fs::read(&path)?;
        for cut in [0, 10, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut])?;
            assert!(script_description(&path).is_err(), "{cut} bytes");
        }
        Ok(())
    }
}
