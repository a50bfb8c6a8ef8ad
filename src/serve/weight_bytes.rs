//! What a model's weights take on the disk, as a first guess of what they will take in memory.

use std::path::Path;

/// Bytes of a GGUF file, or of a folder's weight files; one format only, since a folder may hold the same weights in several.
pub fn weight_bytes(model: &Path) -> Option<u64> {
    if model.is_file() {
        return std::fs::metadata(model).ok().map(|meta| meta.len());
    }
    // `model.safetensors`, or its shards: other files of that kind are no weights that are loaded.
    let holds_weights = |name: &str| name.ends_with(".gguf") || (name.starts_with("model") && name.ends_with(".safetensors"));
    let bytes: u64 = std::fs::read_dir(model)
        .ok()?
        .filter_map(Result::ok)
        .filter(|entry| holds_weights(&entry.file_name().to_string_lossy()))
        // Through the links of the hub's cache.
        .filter_map(|entry| std::fs::metadata(entry.path()).ok())
        .map(|meta| meta.len())
        .sum();
    (bytes > 0).then_some(bytes)
}
