//! What the standard library draws from the system is the same in every run.
//!
//! tokio decides by a generator of its own which branch of a `select!` is polled first and which
//! waiter of a watch channel is woken first. Its seed comes from `RandomState`, whose keys come
//! from `getrandom`, and cannot be set from outside in a stable build. The standard library calls
//! `getrandom` as a weak symbol so that it may be replaced: here it is. Keys and nonces of TLS do
//! not pass through it; they have no influence on the length or the moment of a datagram.
//!
//! tokio mixes a process-wide count of runtimes into each seed, and the keys of a thread move on
//! with each map: so a schedule runs in a process and on a thread of its own.

use std::{cell::Cell, ffi::c_uint};

thread_local! {
    static STATE: Cell<u64> = const { Cell::new(0x5eed) };
}

/// Takes the place of the C library's function in this test program.
// SAFETY: the name is the C library's own, with the same signature and contract.
#[unsafe(no_mangle)]
extern "C" fn getrandom(buffer: *mut u8, len: usize, _flags: c_uint) -> isize {
    for at in 0..len {
        let byte = STATE.with(|state| {
            let next = state.get().wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            state.set(next);
            next.to_be_bytes()[0]
        });
        // SAFETY: the caller hands over `len` writable bytes, as it must to the C library.
        unsafe { buffer.add(at).write(byte) };
    }
    isize::try_from(len).unwrap_or(isize::MAX)
}
