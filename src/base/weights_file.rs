//! Tensors in safetensors files.

use std::fs;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Dtype, Metadata, TensorView};
use tch::{Device, Kind, Tensor};

use super::{atomic_file::sync, small_file};

/// The longest header in bytes that the library reads.
const MOST_HEADER: u64 = 100_000_000;

/// The header of a safetensors file. Its length and that of the data are those of the file, so the file may be read whole.
///
/// # Errors
/// When it cannot be read, or is no such file.
pub fn header(file: &Path) -> Result<Metadata> {
    let unreadable = "the file could not be read";
    let mut from = small_file::open(file).context(unreadable)?;
    let len = from.metadata().context(unreadable)?.len();
    let mut length = [0; 8];
    ensure!(len > 8, "not a valid safetensors file: it has {len} bytes");
    from.read_exact(&mut length).context(unreadable)?;
    let header = u64::from_le_bytes(length);
    ensure!(header < MOST_HEADER.min(len - 7), "not a valid safetensors file: its header cannot have {header} bytes");
    let mut text = Vec::new();
    from.take(header).read_to_end(&mut text).context(unreadable)?;
    let metadata: Metadata = serde_json::from_slice(&text).context("not a valid safetensors file")?;
    let wanted = 8 + header + metadata.data_len() as u64;
    ensure!(len == wanted, "not a valid safetensors file: it has {len} bytes, and {wanted} by its header");
    Ok(metadata)
}

/// Writes tensors as safetensors, synced; contiguous CPU tensors are not copied.
///
/// # Errors
/// When the file cannot be written, or a tensor is of a type that weights and their state do not have.
pub fn write(file: &Path, tensors: Vec<(String, Tensor)>) -> Result<()> {
    let mut held = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        held.push((name, t.detach().f_to_device(Device::Cpu)?.f_contiguous()?));
    }
    let mut views = Vec::with_capacity(held.len());
    for (name, t) in &held {
        let shape = t.size().iter().map(|&d| d as usize).collect();
        views.push((name, TensorView::new(dtype(t.kind())?, shape, bytes_of(t))?));
    }
    // The library's files are for their owner only; ours are as the user's umask says.
    let permissions = fs::File::create(file)?.metadata()?.permissions();
    safetensors::serialize_to_file(views, None, file)?;
    fs::set_permissions(file, permissions)?;
    Ok(sync(file)?)
}

/// Whether the bytes in a file are those of `t`.
///
/// # Errors
/// libtorch's, when memory ends.
pub fn same(view: &TensorView, t: &Tensor) -> Result<bool> {
    let t = t.detach().f_to_device(Device::Cpu)?.f_contiguous()?;
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Ok(shape == t.size() && view.dtype() == dtype(t.kind())? && view.data() == bytes_of(&t))
}

/// The memory of a contiguous tensor on the CPU.
fn bytes_of(t: &Tensor) -> &[u8] {
    let bytes = t.numel() * t.kind().elt_size_in_bytes();
    // SAFETY: both callers made the tensor contiguous and moved it to the CPU, where `data_ptr` is the start of exactly
    // `bytes` bytes that live as long as the tensor; a slice may not start at null, which an empty tensor's memory may.
    match bytes {
        0 => &[],
        _ => unsafe { std::slice::from_raw_parts(t.data_ptr() as *const u8, bytes) },
    }
}

/// A tensor's type in a file.
///
/// # Errors
/// For a type that weights and their state do not have.
pub fn dtype(kind: Kind) -> Result<Dtype> {
    Ok(match kind {
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        Kind::Int64 => Dtype::I64,
        other => bail!("a tensor of type {other:?} has no place in a file of weights"),
    })
}

/// A tensor of a file, on the CPU.
///
/// # Errors
/// As [`dtype`].
pub fn tensor_of(view: &TensorView) -> Result<Tensor> {
    let kind = match view.dtype() {
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        other => bail!("a tensor of type {other:?} has no place in a file of weights"),
    };
    let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
    Ok(Tensor::f_from_data_size(view.data(), &shape, kind)?)
}
