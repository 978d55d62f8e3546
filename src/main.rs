//! The program: parse, run, print the error as one sentence, exit.

use std::process::ExitCode;

use clap::Parser;
use ganvae::base::{process, progress::say, usage::one_line};
use ganvae::commands::{self, Cli};
use ganvae::{data, native};

#[global_allocator]
static MEMORY: process::Memory = process::Memory;

#[used]
#[unsafe(link_section = ".preinit_array")]
static BEFORE_LIBRARIES: extern "C" fn() = process::before_libraries;

fn main() -> ExitCode {
    native::keep_large_blocks();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(e) if e.use_stderr() && e.kind() != clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // clap's first paragraphs have the error and suggestions; the rest repeats the usage.
            let text = e.render().to_string();
            let said = text.split("\n\n").take_while(|p| !p.starts_with("Usage:") && !p.starts_with("For more"));
            let said = one_line(&said.collect::<Vec<_>>().join("; "));
            say(&format!("{said} (see {})", commands::help_of(std::env::args_os().nth(1))));
            return ExitCode::from(2);
        }
        Err(e) => e.exit(),
    };
    // A panic is a bug: report it in one sentence with its location.
    std::panic::set_hook(Box::new(|info| {
        if data::picture::decoding() {
            return;
        }
        say(&commands::panicked(info));
    }));
    match std::panic::catch_unwind(|| process::prepare().and_then(|()| commands::run(cli))) {
        Ok(Ok(code)) => ExitCode::from(code),
        Ok(Err(error)) => {
            let (code, text) = commands::explain(&error);
            say(&format!("error: {text}"));
            ExitCode::from(code)
        }
        Err(_) => ExitCode::from(1),
    }
}
