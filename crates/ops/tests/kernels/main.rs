//! The kernels against scalar twins, and the promise that a row's bits depend on nothing but the row.
//!
//! The instruction set is chosen once per process, so the last test runs this binary again for the lower ones.
#![allow(clippy::unwrap_used)]

mod activation;
mod attention;
mod decoder;
mod dropout;
mod grouped;
mod matmul;
mod norm;
mod paged;
mod quant;
mod slices;
mod values;

#[test]
fn lower_instruction_sets_pass_the_same_tests() {
    const RERUN: &str = "TUNESMITH_ISA";
    if std::env::var_os(RERUN).is_some() {
        return;
    }
    for isa in ["avx2", "scalar"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap()).env(RERUN, isa).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "with {RERUN}={isa}:\n{text}");
    }
}
