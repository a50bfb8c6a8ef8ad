//! safetensors files as tests read and change them: by hand, so that they check the format and not a library with itself.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// Tensors of a file: name to shape and bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorFile(pub BTreeMap<String, (Vec<usize>, Vec<u8>)>);

impl TensorFile {
    /// Reads f32 tensors: a length, a JSON header, the numbers.
    pub fn read(bytes: &[u8]) -> Self {
        let start = 8 + usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..start]).unwrap();
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, about)| {
            assert_eq!(about["dtype"], "F32", "{name}");
            let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect::<Vec<_>>();
            let place = numbers(&about["data_offsets"]);
            (name, (numbers(&about["shape"]), bytes[start + place[0]..start + place[1]].to_vec()))
        });
        Self(tensors.collect())
    }

    pub fn write(&self) -> Vec<u8> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, (shape, bytes)) in &self.0 {
            let start = data.len();
            data.extend_from_slice(bytes);
            header.insert(name.clone(), json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]}));
        }
        let mut header = serde_json::to_vec(&header).unwrap();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        file
    }

    pub fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }

    /// A tensor's numbers.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        self.0[name].1.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// Gives tensors other names.
    pub fn rename(mut self, new: impl Fn(&str) -> String) -> Self {
        self.0 = self.0.into_iter().map(|(name, tensor)| (new(&name), tensor)).collect();
        self
    }

    /// Writes a number over a part of a tensor.
    pub fn fill(&mut self, name: &str, range: std::ops::Range<usize>, value: f32) {
        let bytes = &mut self.0.get_mut(name).unwrap().1;
        bytes[4 * range.start..4 * range.end].chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&value.to_le_bytes()));
    }
}
