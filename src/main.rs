//! The `baton` command: parses, calls the library, turns an error into an exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    // A supervisor's start is on the way of every script: no command-line parser.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "supervise") {
        return baton::supervisor::main();
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == "keep") {
        return baton::mutex::keeper::main();
    }
    baton::cli::main()
}
