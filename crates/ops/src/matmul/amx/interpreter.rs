//! AMX in software, so that its kernels are tested on processors without it.
//!
//! There an instruction of the unit raises SIGILL; the handler does what it would have done (Intel SDM, volume 2: the operations of
//! LDTILECFG, TILEZERO, TILELOADD, TILESTORED, TILERELEASE and TDPBF16PS) and goes on behind it. All else that raises SIGILL ends the
//! process as before.

use crate::cpu;
use half::bf16;
use std::cell::UnsafeCell;
use std::sync::Once;

/// Bytes of a tile's row, and rows.
const ROW: usize = 64;
const ROWS: usize = 16;

/// What the unit holds for a thread.
struct Unit {
    configured: bool,
    rows: [u8; 8],
    bytes: [u16; 8],
    tiles: [[[u8; ROW]; ROWS]; 8],
}

thread_local! {
    static UNIT: UnsafeCell<Unit> =
        const { UnsafeCell::new(Unit { configured: false, rows: [0; 8], bytes: [0; 8], tiles: [[[0; ROW]; ROWS]; 8] }) };
}

/// Has this process's instructions of the unit interpreted, if the processor has none.
pub(super) fn stand_in() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if cpu::permitted_amx() {
            return;
        }
        // SAFETY: the handler touches its thread's unit and the memory that the instruction names, and calls nothing that a signal
        // handler may not call.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_illegal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            assert_eq!(libc::sigaction(libc::SIGILL, &raw const action, std::ptr::null_mut()), 0);
        }
    });
}

extern "C" fn on_illegal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the system passes the context of the instruction, whose bytes are readable.
    let done = unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        UNIT.with(|unit| execute(&mut *unit.get(), registers))
    };
    if done.is_none() {
        // SAFETY: the default action, which ends the process when the instruction is run again.
        unsafe { libc::signal(libc::SIGILL, libc::SIG_DFL) };
    }
}

/// The general registers of a context by their number in an instruction.
const REGISTERS: [i32; 16] = [
    libc::REG_RAX,
    libc::REG_RCX,
    libc::REG_RDX,
    libc::REG_RBX,
    libc::REG_RSP,
    libc::REG_RBP,
    libc::REG_RSI,
    libc::REG_RDI,
    libc::REG_R8,
    libc::REG_R9,
    libc::REG_R10,
    libc::REG_R11,
    libc::REG_R12,
    libc::REG_R13,
    libc::REG_R14,
    libc::REG_R15,
];

/// An address: base, index with its scale and displacement.
struct Address {
    base: usize,
    stride: usize,
}

/// Runs the instruction at the context's instruction pointer, and moves that behind it. None if it is not one of the unit's.
///
/// # Safety
/// The instruction pointer must be readable, and so must be what the instruction reads; what it writes must be writable.
unsafe fn execute(unit: &mut Unit, registers: &mut [i64; 23]) -> Option<()> {
    let start = registers[libc::REG_RIP as usize] as usize as *const u8;
    // SAFETY: an instruction that was fetched; the longest of the unit has ten bytes, and code goes on behind it.
    let at = |i: usize| unsafe { start.add(i).read() };
    // The three-byte VEX prefix of map 0F38 with W = 0 and L = 0; bits stand inverted there.
    let (first, second) = (at(1), at(2));
    if at(0) != 0xc4 || first & 0x1f != 2 || second & 0x84 != 0 {
        return None;
    }
    let (third, prefix, opcode, modrm) = (usize::from(!(second >> 3) & 15), second & 3, at(3), at(4));
    let (mode, reg, rm) = (modrm >> 6, usize::from(modrm >> 3 & 7), usize::from(modrm & 7));
    let value = |number: usize| registers[REGISTERS[number] as usize] as usize;
    let mut len = 5;
    let address = if mode == 3 {
        None
    } else {
        let (high_index, high_base) = (usize::from(!first >> 6 & 1) << 3, usize::from(!first >> 5 & 1) << 3);
        let (base, stride, wide) = if rm == 4 {
            let sib = at(5);
            len += 1;
            let (index, base) = (usize::from(sib >> 3 & 7) | high_index, usize::from(sib & 7) | high_base);
            // Number 4 means that there is no index.
            let stride = if index == 4 { 0 } else { value(index) << (sib >> 6) };
            (value(base), stride, mode == 0 && sib & 7 == 5)
        } else {
            (value(rm | high_base), 0, mode == 0 && rm == 5)
        };
        if wide {
            return None;
        }
        let displacement = match mode {
            1 => i64::from(at(len) as i8),
            2 => i64::from(i32::from_le_bytes(std::array::from_fn(|i| at(len + i)))),
            _ => 0,
        };
        len += [0, 1, 4][usize::from(mode)];
        Some(Address { base: base.wrapping_add_signed(displacement as isize), stride })
    };
    match (opcode, prefix, address) {
        (0x49, 0, Some(from)) => {
            // SAFETY: the instruction reads 64 bytes here.
            let bytes = unsafe { (from.base as *const [u8; 64]).read_unaligned() };
            assert_eq!((bytes[0], bytes[1]), (1, 0), "palette 1 from its first row on");
            unit.configured = true;
            unit.tiles = [[[0; ROW]; ROWS]; 8];
            unit.bytes = std::array::from_fn(|i| u16::from_le_bytes([bytes[16 + 2 * i], bytes[17 + 2 * i]]));
            unit.rows = std::array::from_fn(|i| bytes[48 + i]);
        }
        (0x49, 0, None) if modrm == 0xc0 => unit.configured = false,
        (0x49, 3, None) => unit.tile(reg)?.fill([0; ROW]),
        (0x4b, 2 | 3, Some(memory)) => {
            let width = usize::from(unit.bytes[reg]);
            for (i, row) in unit.tile(reg)?.iter_mut().enumerate() {
                let there = memory.base.wrapping_add(memory.stride.wrapping_mul(i)) as *mut u8;
                // SAFETY: the instruction reads or writes so many bytes of each row here.
                let there = unsafe { std::slice::from_raw_parts_mut(there, width) };
                if prefix == 3 {
                    row.fill(0);
                    row[..width].copy_from_slice(there);
                } else {
                    there.copy_from_slice(&row[..width]);
                }
            }
        }
        (0x5c, 2, None) => unit.multiply(reg, rm, third)?,
        _ => return None,
    }
    registers[libc::REG_RIP as usize] += len as i64;
    Some(())
}

impl Unit {
    /// The rows of a tile that the configuration gives it.
    fn tile(&mut self, index: usize) -> Option<&mut [[u8; ROW]]> {
        self.configured.then(|| &mut self.tiles[index][..usize::from(self.rows[index])])
    }

    /// TDPBF16PS: sums of the even and of the odd products of a row, added to each other and then to what was there.
    fn multiply(&mut self, sums: usize, left: usize, right: usize) -> Option<()> {
        let (pairs, columns) = (usize::from(self.bytes[left]) / 4, usize::from(self.bytes[sums]) / 4);
        let fits = usize::from(self.rows[right]) == pairs && usize::from(self.bytes[right]) / 4 == columns;
        if !fits || self.rows[left] != self.rows[sums] {
            return None;
        }
        let half = |row: &[u8; ROW], at: usize| bf16::from_le_bytes([row[2 * at], row[2 * at + 1]]).to_f32();
        let (left, right) = (self.tiles[left], self.tiles[right]);
        for (row, left) in self.tile(sums)?.iter_mut().zip(left) {
            for (column, sum) in row.as_chunks_mut::<4>().0.iter_mut().enumerate().take(columns) {
                let mut both = [0.0f32; 2];
                for (k, right) in right.iter().enumerate().take(pairs) {
                    for (odd, both) in both.iter_mut().enumerate() {
                        *both = half(&left, 2 * k + odd).mul_add(half(right, 2 * column + odd), *both);
                    }
                }
                *sum = (f32::from_le_bytes(*sum) + (both[0] + both[1])).to_le_bytes();
            }
        }
        Some(())
    }
}
