//! The `baton` command: parses, calls the library, turns an error into an exit status.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    // A supervisor's start is on the way of every script: no command-line parser. Only by our own name:
    // called as `flock`, the word is a file.
    if let [program, only] = words.as_slice()
        && !Path::new(program).ends_with("flock")
    {
        if only == "supervise" {
            return baton::supervisor::main();
        }
        if only == "keep" {
            return baton::mutex::keeper::main();
        }
    }
    if let [program, word, words @ ..] = words.as_slice()
        && word == "tether"
        && !Path::new(program).ends_with("flock")
    {
        return baton::fleet::tether::main(words);
    }
    // It outlives the agent that it watches, and must understand what that one says: no command line either.
    if let [program, word, words @ ..] = words.as_slice()
        && word == "guard"
        && !Path::new(program).ends_with("flock")
    {
        return baton::guard::main(words);
    }
    baton::cli::main(&words)
}
