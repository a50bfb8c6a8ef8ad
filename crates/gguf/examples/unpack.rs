//! Writes the Hugging Face folder that a GGUF file amounts to, with f32 weights, to compare it with another program's reading:
//! `cargo run --release -p tunesmith-gguf --example unpack -- MODEL.gguf FOLDER`.

use std::error::Error;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Instant;

use serde_json::{Map, Value, json};
use tunesmith_gguf::GgufFile;

fn main() -> Result<(), Box<dyn Error>> {
    let [model, folder] = std::env::args().skip(1).map(PathBuf::from).collect::<Vec<_>>().try_into().map_err(|_| "MODEL.gguf FOLDER")?;
    std::fs::create_dir_all(&folder)?;
    let file = GgufFile::open(&model)?;
    let pretty = |value: &Value| serde_json::to_string_pretty(value);
    std::fs::write(folder.join("config.json"), pretty(&Value::Object(file.config_json()?))?)?;
    std::fs::write(folder.join("tokenizer.json"), serde_json::to_string(&file.tokenizer_json()?)?)?;
    std::fs::write(folder.join("tokenizer_config.json"), pretty(&file.tokenizer_config_json()?)?)?;
    file.warnings().iter().for_each(|warning| eprintln!("{warning}"));

    let mut header = Map::new();
    let mut tensors = Vec::new();
    let (mut at, mut spent) = (0, 0.0);
    for name in file.hf_names() {
        let start = Instant::now();
        let (shape, values) = file.hf_tensor(&name)?.ok_or("a tensor that is listed is there")?;
        spent += start.elapsed().as_secs_f64();
        header.insert(name, json!({"dtype": "F32", "shape": shape, "data_offsets": [at, at + 4 * values.len()]}));
        at += 4 * values.len();
        tensors.push(values);
    }
    let header = serde_json::to_vec(&header)?;
    let mut out = BufWriter::new(File::create(folder.join("model.safetensors"))?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(&header)?;
    for value in tensors.iter().flatten() {
        out.write_all(&value.to_le_bytes())?;
    }
    out.flush()?;
    println!("{} values of {} tensors, read in {spent:.2} s", at / 4, tensors.len());
    Ok(())
}
