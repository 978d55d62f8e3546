//! TorchScript modules on disk: written with real sub-modules, parameters and buffers, which tracing would freeze into constants.

use std::ffi::{CStr, CString, c_char};
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;

use super::{Handle, check, gv_free, handle};

unsafe extern "C" {
    fn gv_script_save(
        file: *const c_char,
        name: *const c_char,
        description: *const c_char,
        methods: *const c_char,
        parts: usize,
        part_names: *const *const c_char,
        part_kinds: *const *const c_char,
        part_methods: *const *const c_char,
        tensors: usize,
        keys: *const *const c_char,
        values: *const Handle,
        parameters: *const bool,
    ) -> *mut c_char;
    fn gv_script_description(file: *const c_char, out: *mut *mut c_char) -> *mut c_char;
}

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

/// Strings as C wants them: the bytes, and pointers to them.
struct Strings(Vec<CString>);

impl Strings {
    fn new<'a>(all: impl IntoIterator<Item = &'a str>) -> Result<Self> {
        Ok(Strings(all.into_iter().map(CString::new).collect::<Result<_, _>>().context("a name with a NUL in it")?))
    }

    fn pointers(&self) -> Vec<*const c_char> {
        self.0.iter().map(|s| s.as_ptr()).collect()
    }
}

fn c_path(path: &Path) -> Result<CString> {
    let text = path.to_str().with_context(|| format!("{}: libtorch takes file names in UTF-8 only", path.display()))?;
    CString::new(text).with_context(|| format!("{text:?}: a file name with a NUL in it"))
}

/// Writes a TorchScript module of class `name` in evaluation mode: `parts` as sub-modules, `tensors` (key PART.NAME, value, whether
/// it is a parameter) in them as dense float32 on the CPU, `methods` (with a `forward`) of the whole, and `description` as an extra file and as the attribute `ganvae`.
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
    let (file, whole) = (c_path(path)?, Strings::new([name, description, methods])?);
    let names = Strings::new(parts.iter().map(|p| p.name.as_str()))?;
    let kinds = Strings::new(parts.iter().map(|p| p.kind))?;
    let sources = Strings::new(parts.iter().map(|p| p.methods.as_str()))?;
    let keys = Strings::new(tensors.iter().map(|(key, ..)| key.as_str()))?;
    let values: Vec<Handle> = tensors.iter().map(|(_, t, _)| handle(t)).collect();
    let parameters: Vec<bool> = tensors.iter().map(|(.., parameter)| *parameter).collect();
    let [whole, names, kinds, sources, keys] = [&whole, &names, &kinds, &sources, &keys].map(Strings::pointers);
    // SAFETY: every list has as many entries as its count says; strings and tensors outlive the call.
    check("TorchScript", unsafe {
        gv_script_save(
            file.as_ptr(),
            whole[0],
            whole[1],
            whole[2],
            parts.len(),
            names.as_ptr(),
            kinds.as_ptr(),
            sources.as_ptr(),
            tensors.len(),
            keys.as_ptr(),
            values.as_ptr(),
            parameters.as_ptr(),
        )
    })
}

/// The description that [`save_script`] wrote into a module's file, also after Python has saved the module again; none in other modules.
///
/// # Errors
/// libtorch's, when the file cannot be read or is no TorchScript module.
pub fn script_description(path: &Path) -> Result<Option<String>> {
    let (file, mut out) = (c_path(path)?, std::ptr::null_mut());
    // SAFETY: the name outlives the call; `out` is a place for one pointer.
    check("TorchScript", unsafe { gv_script_description(file.as_ptr(), &mut out) })?;
    if out.is_null() {
        return Ok(None);
    }
    // SAFETY: a pointer that is not null is a NUL-terminated string of malloc's, freed once, here.
    Ok(Some(unsafe {
        let text = CStr::from_ptr(out).to_string_lossy().into_owned();
        gv_free(out);
        text
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{CModule, Kind};

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
