//! Errors as users see them: one sentence and an exit code.

use tch::TchError;

use crate::base::process::LESS_MEMORY;
use crate::base::usage::{Usage, one_line};

/// The exit code of an error, and its chain of causes as one sentence.
pub fn explain(error: &anyhow::Error) -> (u8, String) {
    let usage = error.chain().any(|cause| cause.is::<Usage>());
    let mut parts: Vec<String> = Vec::new();
    for cause in error.chain() {
        let part = plain(&cause.to_string());
        // Not of a text of ours: there a line break is in the name of a file.
        let part = if cause.is::<TchError>() { one_line(&part) } else { part };
        // Some errors repeat their cause in their own text.
        if !parts.iter().any(|p| p.contains(&part)) {
            parts.push(part);
        }
    }
    (if usage { 2 } else { 1 }, parts.join(": "))
}

/// A panic in one sentence, with its source location: a bug in ganvae, except where memory ran out in a call for which tch has no error.
pub fn panicked(info: &std::panic::PanicHookInfo) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref::<&str>().copied());
    let text = text.unwrap_or_default();
    if let Some(sentence) = out_of_memory(text) {
        return format!("error: {sentence}");
    }
    let place = info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
    format!("error: ganvae failed{place}: {}", one_line(&plain(text)))
}

/// Where libtorch says that memory ran out: this in one sentence, and what to do.
fn out_of_memory(text: &str) -> Option<String> {
    let said = [("you tried to allocate ", ""), ("CUDA out of memory. Tried to allocate ", "the GPU's ")];
    let (rest, whose) = said.iter().find_map(|(before, whose)| Some((text.split_once(before)?.1, whose)))?;
    let amount = rest.split(". ").next().unwrap_or_default();
    Some(format!("{whose}memory ran out, when {amount} more were wanted: {LESS_MEMORY}"))
}

/// An error message without libtorch's stack trace.
fn plain(text: &str) -> String {
    let ends = ["Exception raised from", "frame #0:"];
    let first = ends.iter().fold(text, |text, end| text.split(end).next().unwrap_or_default());
    out_of_memory(text).unwrap_or_else(|| first.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind, Tensor};

    #[test]
    fn memory_that_ran_out_is_said_in_one_sentence() {
        let error = anyhow::Error::from(Tensor::f_zeros([1 << 45], (Kind::Float, Device::Cpu)).unwrap_err());
        let said = explain(&error.context("timing the forms of a step"));
        let want = format!(
            "timing the forms of a step: memory ran out, when 140737488355328 bytes more were wanted: {LESS_MEMORY}"
        );
        assert_eq!(said, (1, want));
        let cuda = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.9 GiB is free.";
        assert!(
            plain(cuda).starts_with("the GPU's memory ran out, when 2.50 GiB more were wanted: "),
            "{}",
            plain(cuda)
        );
    }

    #[test]
    fn libtorchs_stack_traces_stay_out_of_sight() {
        let error = anyhow::Error::from(Tensor::from(1f32).f_view([2, 2]).unwrap_err());
        let (code, said) = explain(&error);
        assert_eq!(code, 1);
        assert!(
            said.contains("shape '[2, 2]' is invalid") && !said.contains("frame") && !said.contains("Exception"),
            "{said}"
        );
        assert_eq!(plain("a b\nframe #0: c10::x (0x1 in y)"), "a b");
    }
}
