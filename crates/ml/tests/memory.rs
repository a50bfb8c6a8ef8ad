//! The memory estimate against what training really takes. The peak belongs to a process, so each case runs in its own.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

#[path = "reference/jobs.rs"]
mod jobs;
mod reference;

use std::process::Command;

use jobs::*;
use reference::*;
use tunesmith_ml::spec::Tuning;

/// A line of /proc/self/status in bytes.
fn status(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn measure(tuning: Tuning, checkpointing: bool) {
    let base = random_bert(384, 4, 1536);
    let mut spec = spec(tuning, &["film", "market"]);
    (spec.training.max_steps, spec.training.per_device_train_batch_size) = (2, 64);
    (spec.training.save_steps, spec.training.gradient_checkpointing) = (Some(100), checkpointing);
    let job = Job::new(base.path(), spec, rows(128, 2, 1), vec![]);
    let before = status("VmRSS");
    let estimate = job.prepare().unwrap().plan.estimated_memory_bytes;
    job.run(None, &mut Recorder::new(None)).unwrap();
    println!("estimate {estimate} real {} end", status("VmHWM") - before);
}

#[test]
#[ignore = "started by the_estimate_is_neither_far_below_nor_far_above_the_real_peak"]
fn child_full() {
    measure(Tuning::Full, false);
}

#[test]
#[ignore = "started by the_estimate_is_neither_far_below_nor_far_above_the_real_peak"]
fn child_lora() {
    measure(lora(8, 16.0), false);
}

#[test]
#[ignore = "started by the_estimate_is_neither_far_below_nor_far_above_the_real_peak"]
fn child_checkpointing() {
    measure(lora(8, 16.0), true);
}

#[test]
fn the_estimate_is_neither_far_below_nor_far_above_the_real_peak() {
    for case in ["child_full", "child_lora", "child_checkpointing"] {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let output = command.args([case, "--exact", "--ignored", "--nocapture"]).output().unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let line = out.split("estimate ").nth(1).and_then(|l| l.split(" end").next()).unwrap_or_else(|| panic!("{case}: {out}"));
        let (estimate, real) = line.split_once(" real ").unwrap();
        let (estimate, real): (f64, f64) = (estimate.parse().unwrap(), real.parse().unwrap());
        let ratio = estimate / real;
        println!("{case}: estimated {:.0} MiB, took {:.0} MiB", estimate / 1048576.0, real / 1048576.0);
        assert!((0.8..2.5).contains(&ratio), "{case}: estimated {estimate} bytes, took {real}");
    }
}
