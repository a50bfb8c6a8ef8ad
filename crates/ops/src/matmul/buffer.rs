//! Memory for packed panels: aligned to a cache line, and a scratch area that each thread keeps for its next call.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A run of f32 (or of bf16 pairs in their place) that begins on a cache line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffer {
    lines: Vec<Line>,
}

impl Buffer {
    /// A buffer of zeros with room for `len` elements.
    pub(crate) fn zeros(len: usize) -> Buffer {
        Buffer { lines: vec![Line([0.0; 16]); len.div_ceil(16)] }
    }

    /// Makes room for `len` elements; what the buffer held is of no meaning afterwards.
    pub(crate) fn reserve(&mut self, len: usize) {
        if self.lines.len() < len.div_ceil(16) {
            self.lines.resize(len.div_ceil(16), Line([0.0; 16]));
        }
    }

    /// All elements.
    pub(crate) fn as_slice(&self) -> &[f32] {
        // SAFETY: a line is sixteen f32 without padding, and lines are adjacent.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 16) }
    }

    /// All elements, to write.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: as in `as_slice`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 16) }
    }
}

impl Buffer {
    /// All elements as the bytes that they are stored in.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        // SAFETY: f32 have no padding, and every byte is a valid u8.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 64) }
    }

    /// The same, to write.
    pub(crate) fn as_mut_bytes(&mut self) -> &mut [u8] {
        // SAFETY: as in `as_bytes`, and any bytes are a valid f32; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 64) }
    }
}

/// Runs `work` with `len` elements of this thread's scratch memory, whose contents are left over from earlier calls.
///
/// `work` must not hand tasks to the thread pool: a task stolen meanwhile could ask for the same scratch.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<Buffer> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(|buffer| {
        buffer.reserve(len);
        work(&mut buffer.as_mut_slice()[..len])
    })
}

/// As [`with_scratch`] with memory that belongs to no thread, so `work` may hand tasks to the thread pool.
pub(crate) fn with_shared_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    static KEPT: Mutex<Vec<Buffer>> = Mutex::new(Vec::new());
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    let mut buffer = kept().pop().unwrap_or_default();
    buffer.reserve(len);
    let result = work(&mut buffer.as_mut_slice()[..len]);
    kept().push(buffer);
    result
}

/// A pointer that tasks of one call share; each writes elements of its own.
#[derive(Clone, Copy)]
pub(crate) struct Shared(*mut f32);

// SAFETY: the pointer is only a number; whoever writes through it proves that no two tasks touch the same element.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// Shares a slice for the time of one call.
    pub(crate) fn new(slice: &mut [f32]) -> Shared {
        Shared(slice.as_mut_ptr())
    }

    /// The first element.
    pub(crate) fn ptr(self) -> *mut f32 {
        self.0
    }

    /// The elements of a range, to write.
    ///
    /// # Safety
    /// They must exist, and nobody else may have them for as long.
    pub(crate) unsafe fn part<'a>(self, range: Range<usize>) -> &'a mut [f32] {
        // SAFETY: passed on to the caller.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(range.start), range.len()) }
    }
}

/// Vectors of these lengths whose elements `fill` writes, and nobody clears first.
///
/// # Safety
/// `fill` must write all of them, and read none before.
pub(crate) unsafe fn written<const N: usize>(lens: [usize; N], fill: impl FnOnce([Shared; N])) -> [Vec<f32>; N] {
    let mut vectors = lens.map(Vec::with_capacity);
    fill(std::array::from_fn(|i| Shared(vectors[i].as_mut_ptr())));
    for (vector, len) in vectors.iter_mut().zip(lens) {
        // SAFETY: there is room, and the caller promises that all is written.
        unsafe { vector.set_len(len) };
    }
    vectors
}
