//! Slices of candle tensors on the CPU, so that our kernels read and write them without a copy.

use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Storage, StorageRef, Tensor, bail};
use std::cell::RefCell;

/// A read guard on a contiguous f32 tensor of the CPU.
pub struct F32View<'a> {
    storage: StorageRef<'a>,
    start: usize,
    len: usize,
}

impl<'a> F32View<'a> {
    /// Locks the tensor's storage for reading.
    ///
    /// # Errors
    /// If the tensor is not contiguous, not f32 or not on the CPU.
    pub fn new(tensor: &'a Tensor) -> candle_core::Result<Self> {
        if tensor.dtype() != DType::F32 {
            bail!("expected an f32 tensor, got {:?}", tensor.dtype());
        }
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
        match &*storage {
            Storage::Cpu(cpu) => cpu.as_slice::<f32>()?,
            _ => bail!("expected a tensor on the CPU"),
        };
        Ok(Self { storage, start, len: end - start })
    }
}

impl std::ops::Deref for F32View<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(data)) => &data[self.start..self.start + self.len],
            // `new` accepted nothing but f32 on the CPU, and a storage never changes its type.
            _ => &[],
        }
    }
}

/// Runs `f` on the tensor's values, which it may change in place; every view of the same storage sees the change.
///
/// # Errors
/// If the tensor is not contiguous, not f32 or not on the CPU.
pub fn with_f32_mut<R>(tensor: &Tensor, f: impl FnOnce(&mut [f32]) -> R) -> candle_core::Result<R> {
    struct Once<F, R>(RefCell<(Option<F>, Option<R>)>);
    impl<R, F: FnOnce(&mut [f32]) -> R> InplaceOp1 for Once<F, R> {
        fn name(&self) -> &'static str {
            "with_f32_mut"
        }

        fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
            let Some((start, end)) = layout.contiguous_offsets() else { bail!("expected a contiguous tensor") };
            let CpuStorage::F32(data) = storage else { bail!("expected an f32 tensor") };
            let mut cell = self.0.borrow_mut();
            if let Some(f) = cell.0.take() {
                cell.1 = Some(f(&mut data[start..end]));
            }
            Ok(())
        }
    }
    let op = Once(RefCell::new((Some(f), None)));
    tensor.inplace_op1(&op)?;
    match op.0.into_inner().1 {
        Some(result) => Ok(result),
        None => bail!("the in-place operation did not run"),
    }
}
