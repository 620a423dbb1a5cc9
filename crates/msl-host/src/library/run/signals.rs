//! Signals of the processor that a kernel raises. The handler is of this crate, as images come and go.

use std::cell::Cell;
use std::sync::OnceLock;

use libc::{c_int, c_void, siginfo_t};

/// An image's part of the handler: does not return where one of its kernels runs on this thread.
pub(super) type Trap = unsafe extern "C" fn(c_int, *mut c_void);

const SIGNALS: [c_int; 4] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL];

thread_local! {
    static CURRENT: Cell<Option<Trap>> = const { Cell::new(None) };
}

/// The handlers that were there before, in the order of `SIGNALS`.
static PREVIOUS: OnceLock<[libc::sigaction; 4]> = OnceLock::new();

/// While it lives, signals of this thread go to an image.
pub(super) struct Handler(());

impl Handler {
    pub(super) fn new(trap: Trap) -> Self {
        PREVIOUS.get_or_init(|| SIGNALS.map(install));
        CURRENT.set(Some(trap));
        Handler(())
    }
}

impl Drop for Handler {
    fn drop(&mut self) {
        CURRENT.set(None);
    }
}

/// Installs the handler of a signal and gives the one before.
fn install(signal: c_int) -> libc::sigaction {
    // SAFETY: a sigaction of zeros is the default action with an empty mask.
    let (mut action, mut old): (libc::sigaction, libc::sigaction) = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: the handler has the signature of SA_SIGINFO and lives as long as the process.
    unsafe { libc::sigaction(signal, &action, &mut old) };
    old
}

extern "C" fn on_signal(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    if let Some(trap) = CURRENT.get() {
        // SAFETY: the image of the trap is loaded while its handler lives.
        unsafe { trap(signal, context) };
    }
    // Not of a kernel: what was there before decides.
    let place = SIGNALS.iter().position(|&known| known == signal);
    let previous = place.and_then(|place| PREVIOUS.get().map(|all| all[place]));
    match previous {
        Some(old) if old.sa_sigaction != libc::SIG_DFL && old.sa_sigaction != libc::SIG_IGN => {
            if old.sa_flags & libc::SA_SIGINFO != 0 {
                // SAFETY: a handler with SA_SIGINFO has this signature.
                let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                    unsafe { std::mem::transmute(old.sa_sigaction) };
                handler(signal, info, context);
            } else {
                // SAFETY: a handler without SA_SIGINFO has this signature.
                let handler: extern "C" fn(c_int) =
                    unsafe { std::mem::transmute(old.sa_sigaction) };
                handler(signal);
            }
        }
        // SAFETY: the default action of these signals ends the process.
        _ => unsafe {
            libc::signal(signal, libc::SIG_DFL);
            libc::raise(signal);
        },
    }
}
