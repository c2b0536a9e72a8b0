//! Whether a command ignores SIGPIPE is inherited; Rust's runtime ignores it in every program, and
//! starts every command with the default. Services of systemd, for one, are started ignoring it.

use std::ffi::c_int;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::SIGPIPE;

/// `SIG_IGN` of signal(2).
const IGNORE: usize = 1;

#[expect(unsafe_code, reason = "neither std nor rustix has it")]
unsafe extern "C" {
    /// signal(2) of the C library, which std links.
    fn signal(number: c_int, action: usize) -> usize;
}

/// Whether this process was started ignoring SIGPIPE.
static IS_IGNORED: AtomicBool = AtomicBool::new(false);

/// Called before the runtime of Rust, which changes it.
#[used]
#[expect(unsafe_code, reason = "nothing of std tells later what it was")]
// SAFETY: the section is a list of functions of this type, which are called before main.
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = look;

extern "C" fn look() {
    IS_IGNORED.store(ignore_pipe() == IGNORE, Ordering::Relaxed);
}

/// Ignores SIGPIPE; returns what was done before.
fn ignore_pipe() -> usize {
    // SAFETY: it takes two numbers, of which the second is no handler's address, and may be called
    // everywhere, also between fork and exec.
    #[expect(unsafe_code, reason = "a function of the C library")]
    unsafe {
        signal(SIGPIPE, IGNORE)
    }
}

/// Has a command ignore SIGPIPE if it would without this process in between.
pub(super) fn inherit_signals(command: &mut Command) {
    if !IS_IGNORED.load(Ordering::Relaxed) {
        // By posix_spawn, which is faster than fork.
        return;
    }
    let ignore = || {
        ignore_pipe();
        Ok(())
    };
    // SAFETY: it is one system call, by a function that may be called between fork and exec.
    #[expect(unsafe_code, reason = "the only way to change it in the command")]
    unsafe {
        command.pre_exec(ignore);
    }
}
