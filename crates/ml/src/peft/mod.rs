//! Parameter-efficient fine-tuning: which layers are trained, new adapters, and PEFT's folder format.

mod config;
mod folder;
mod load;
mod start;
mod targets;

pub use folder::{AdapterConfigFile, AdapterFolder, save_adapter, write_adapter};
pub use load::{AdapterFacts, LoadedAdapter, LoadedUpdates, load_adapter, load_language_adapter};
pub use start::new_adapter;
pub use targets::{check_pattern, check_saved_modules, check_targets, head_modules_to_save, target_layers};
