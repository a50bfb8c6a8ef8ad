//! A job's resolved settings as people read them: by the request's names, and only those that its task has.
//!
//! The job's object, a dry run and a model's card tell them so. What a worker trains by is the `JobSpec` itself.

use serde_json::{Map, Value, json};
use tunesmith_ml::spec::{JobSpec, LanguageData, Task, TextSource};

/// The three sections.
#[derive(Debug, Clone, PartialEq)]
pub struct Echo {
    /// How the rows are read.
    pub data: Value,
    /// Which parameters are trained.
    pub tuning: Value,
    /// The training loop.
    pub training: Value,
}

impl Echo {
    /// The sections of a job's settings.
    pub fn of(spec: &JobSpec) -> Self {
        let mut data = json!(spec.data);
        let mut tuning = json!(spec.tuning);
        let mut training = json!(spec.training);
        if let Some(language) = &spec.data.language {
            data = language_data(language, spec.data.validation_split);
            remove(&mut tuning, &["modules_to_save"]);
            remove(&mut training, &["label_smoothing_factor", "class_weights"]);
        }
        if spec.task == Task::Classification {
            remove(&mut training, &["packing"]);
        }
        if spec.training.max_tokens_per_batch.is_some() {
            remove(&mut training, &["per_device_train_batch_size"]);
        }
        Self { data, tuning, training }
    }

    /// The sections of a stored job; as they are, where another version wrote them.
    pub fn of_stored(mut spec: Value) -> Self {
        if let Ok(read) = serde_json::from_value::<JobSpec>(spec.clone()) {
            return Self::of(&read);
        }
        let mut section = |name: &str| spec.get_mut(name).map(Value::take).unwrap_or_default();
        Self { data: section("data"), tuning: section("tuning"), training: section("training") }
    }

    /// All of the settings in one object.
    pub fn whole(spec: &JobSpec) -> Value {
        let Self { data, tuning, training } = Self::of(spec);
        json!({"task": spec.task, "seed": spec.seed, "data": data, "tuning": tuning, "training": training})
    }
}

fn language_data(language: &LanguageData, validation_split: f64) -> Value {
    let mut data = Map::new();
    match &language.source {
        TextSource::Column { name } => {
            data.insert("dataset_text_field".into(), json!(name));
        }
        TextSource::Conversation => {}
        TextSource::Template { prompt, completion, labels } => {
            data.insert("prompt_template".into(), json!(prompt));
            data.insert("label_column".into(), json!(completion));
            if !labels.is_empty() {
                data.insert("labels".into(), json!(labels));
            }
        }
    }
    if !language.filter.is_empty() {
        data.insert("filter".into(), json!(language.filter));
    }
    data.insert("validation_split".into(), json!(validation_split));
    Value::Object(data)
}

fn remove(section: &mut Value, names: &[&str]) {
    if let Some(section) = section.as_object_mut() {
        section.retain(|name, _| !names.contains(&name.as_str()));
    }
}
