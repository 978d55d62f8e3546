//! Names of files and classes as text in one line: for people, and as settings that give the same name again.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// Whether a character breaks a line, controls a terminal, or changes the direction of the text around it.
fn is_control(c: char) -> bool {
    let directs = matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || directs || matches!(c, '\u{2028}' | '\u{2029}')
}

/// Bytes that are not UTF-8, and those of the characters that `also` names, become `\xHH`.
fn escape(name: &OsStr, also: fn(char) -> bool) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("\\x{byte:02x}")).collect::<String>();
    let shown = |c: char| if also(c) { hex(c.encode_utf8(&mut [0; 4]).as_bytes()) } else { c.to_string() };
    let parts = name.as_bytes().utf8_chunks();
    parts.map(|part| part.valid().chars().map(shown).collect::<String>() + &hex(part.invalid())).collect()
}

/// Text for a line of a terminal: control characters, as names may hold them, and bytes that are not UTF-8 become `\xHH`.
pub fn printable(text: impl AsRef<OsStr>) -> String {
    escape(text.as_ref(), is_control)
}

/// As [`printable`], and a backslash becomes `\x5c`: [`unescaped`] gives the same name again.
pub fn escaped(name: impl AsRef<OsStr>) -> String {
    escape(name.as_ref(), |c| c == '\\' || is_control(c))
}

/// The name that [`escaped`] wrote: `\xHH` is a byte, everything else is itself.
pub fn unescaped(text: &str) -> PathBuf {
    let (mut bytes, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let digits = rest.strip_prefix(b"\\x").and_then(|rest| rest.first_chunk::<2>());
        let digits = digits.map(|pair| pair.map(|digit| char::from(digit).to_digit(16)));
        let (byte, after) = match digits {
            Some([Some(high), Some(low)]) => ((high * 16 + low) as u8, &rest[4..]),
            _ => (first, after),
        };
        bytes.push(byte);
        rest = after;
    }
    OsString::from_vec(bytes).into()
}

/// A path quoted for a shell where necessary; `$'...'` where it has to be escaped.
pub fn shell_quoted(path: &Path) -> String {
    let text = escaped(path);
    let plain = |c: char| c.is_alphanumeric() || "_./-+=:,@".contains(c);
    match text.chars().all(plain) {
        true => text,
        false if text.contains('\\') => format!("$'{}'", text.replace('\'', "\\x27")),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&[u8]; 8] = [
        b"plain",
        "é 中".as_bytes(),
        b"a\xffb\xe2\x80",
        b"\x1b[31m\r\n\x7f\t",
        "\u{9b}\u{85}\u{202e}\u{2066}\u{2028}".as_bytes(),
        br"a\xffb\\x\x5c\",
        b"\\\xff\\x1",
        br"\x+f'",
    ];

    #[test]
    fn an_escaped_name_is_one_safe_line_and_gives_the_name_again() {
        for name in NAMES.map(OsStr::from_bytes) {
            let text = escaped(name);
            assert!(!text.contains(is_control), "{text:?}");
            assert_eq!(unescaped(&text).as_os_str(), name, "{text}");
            assert_eq!(escaped(unescaped(&text)), text);
        }
        assert_eq!(escaped("é 中"), "é 中");
        assert_eq!(printable("a\u{1b}[31m\nb\u{9b}\\"), r"a\x1b[31m\x0ab\xc2\x9b\");
    }

    #[test]
    fn a_shell_reads_a_quoted_path_as_it_is() {
        for name in NAMES.map(OsStr::from_bytes) {
            let script = format!("printf %s {}", shell_quoted(name.as_ref()));
            let out = std::process::Command::new("bash").args(["-c", &script]).output().unwrap();
            assert_eq!(OsStr::from_bytes(&out.stdout), name, "{script}");
        }
    }
}
