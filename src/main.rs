//! The `baton` command: parses, calls the library, turns an error into an exit status.

fn main() {}
