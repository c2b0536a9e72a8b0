//! Named points at which a test lets a process die, as if it was killed there, or one thread of it hang. Programs that are built
//! for users (without debug assertions) know none.

/// The variable that says where: `POINT=FILE`. Whoever comes to the point and can remove the file dies: so
/// one process does, once.
pub const VARIABLE: &str = "BATON_TEST_CRASH";
/// The same for a thread that is to hang there, for ever.
pub const HANG_VARIABLE: &str = "BATON_TEST_HANG";

/// Dies here if a test says so.
pub fn point(name: &str) {
    if is_due(name) {
        die();
    }
    if is_due_by(HANG_VARIABLE, name) {
        hang();
    }
}

/// Whether to die at this point.
pub fn is_due(name: &str) -> bool {
    is_due_by(VARIABLE, name)
}

fn is_due_by(variable: &str, name: &str) -> bool {
    if !cfg!(debug_assertions) {
        return false;
    }
    let wanted = std::env::var(variable).unwrap_or_default();
    let file = wanted.split_once('=').filter(|(point, _)| *point == name).map(|(_, file)| file);
    file.is_some_and(|file| std::fs::remove_file(file).is_ok())
}

/// Dies as by `kill -9`.
pub fn die() {
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::KILL).unwrap_or_default();
    hang();
}

fn hang() {
    loop {
        std::thread::park();
    }
}
