//! Rebuilds the crate when a migration is added: `sqlx::migrate!` watches only the files that it
//! found the last time.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
