//! Proof that `ropewalk-patterns` runs without std. The panic handler and the allocator below are language items that
//! std brings too: if any crate beneath links std, this one does not build.
//!
//! ```text
//! cargo build --manifest-path tests/no_std/Cargo.toml
//! ```

#![no_std]

use core::{
    alloc::{GlobalAlloc, Layout},
    panic::PanicInfo,
    ptr::null_mut,
};

use bytes::BytesMut;
use ropewalk_patterns::zmtp::{Decoder, Limits, Room, Step, read_greeting, take_message};

/// Has no memory to give: only the linker needs it.
struct Nothing;

// SAFETY: it never gives memory out, which an allocator may do at any time, so there is none to be taken back.
unsafe impl GlobalAlloc for Nothing {
    unsafe fn alloc(&self, _: Layout) -> *mut u8 {
        null_mut()
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}

#[global_allocator]
static ALLOCATOR: Nothing = Nothing;

#[panic_handler]
fn panic(_: &PanicInfo<'_>) -> ! {
    loop {}
}

/// Uses the crate, so that it is linked and not only read.
pub fn messages(bytes: &[u8]) -> usize {
    if read_greeting(bytes).is_err() {
        return 0;
    }
    let (mut decoder, mut buffer, mut count) = (Decoder::new(Limits::default()), BytesMut::from(bytes), 0);
    while let Ok(Step::Messages { mut bytes, .. }) = decoder.next(&mut buffer, Room::UNBOUNDED) {
        while take_message(&mut bytes).is_some() {
            count += 1;
        }
    }
    count
}
