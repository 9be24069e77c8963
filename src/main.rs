//! The `slowburn` command: an exit code and an error chain. Everything else is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    slowburn::cli::main()
}
