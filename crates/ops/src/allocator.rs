//! The allocator's memory.

/// Gives the pages of freed memory back to the system now, where the program's allocator is mimalloc; with another one this does nothing.
///
/// A program that keeps freed pages for its next step calls this once its model stands: what reading and packing the model freed is of
/// other sizes than what the steps take, and would stay beside it.
pub fn return_freed_pages() {
    // SAFETY: any thread may ask for it at any time. It reads and writes the allocator's own state only, under its own locks.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
