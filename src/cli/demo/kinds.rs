//! The first demo: an encoder learns to tell tweets, movie reviews, product reviews and editorials apart.

use anyhow::Context;
use serde_json::{Value, json};

use super::sentences::{KINDS, Sentences};
use super::{Stage, show};
use crate::cli::client::segment;
use crate::cli::output::say;

/// The encoder.
pub const MODEL: &str = "all-minilm-l6-v2";

/// Sentences that nobody has trained on, to try the model with.
const NEW_TEXTS: [&str; 4] = [
    "omg cant believe its friday already, who's up for pizza tonite?? :)",
    "The cinematography is gorgeous, but the plot collapses in the final act.",
    "Battery lasts two days and the screen is sharp; the case scratches easily though.",
    "The Senate should reject the bill, which would weaken protections for tenants across the state.",
];

/// Trains, evaluates and asks.
pub async fn run(stage: &Stage, sentences: &Sentences) -> anyhow::Result<()> {
    let rows = |half: &[super::sentences::Sentence]| -> Vec<Value> {
        half.iter().map(|s| json!({"text": s.text, "label": KINDS[s.kind].label})).collect()
    };
    let (train, eval) = (rows(&sentences.train), rows(&sentences.eval));
    let labels = KINDS.map(|kind| kind.label).join(", ");
    say!("   {} sentences to train on, {} to evaluate on: {labels}", train.len(), eval.len());

    say!("3. A fine-tuning job");
    let request = request(&stage.upload("train.jsonl", &train).await?, &stage.upload("eval.jsonl", &eval).await?);
    let (id, model) = stage.train(&request).await?;

    say!("\n4. What came of it: {model}");
    show::metrics(&stage.client.get(&format!("/v1/fine_tuning/jobs/{}/metrics", segment(&id))).await?)?;

    say!("5. Sentences that it has never seen");
    let answer = stage.client.post("/v1/classify", &json!({"model": model, "input": NEW_TEXTS})).await.context("asking the model")?;
    show::answers(&NEW_TEXTS, &answer)?;

    let question = json!({"model": model, "input": NEW_TEXTS[0]});
    show::curl(&stage.curl, &request, "/v1/classify", &question)
}

fn request(train: &str, eval: &str) -> Value {
    json!({
        "model": MODEL, "training_file": train, "validation_file": eval, "suffix": "kinds-of-text", "seed": 0,
        "tuning": {"type": "lora", "r": 8, "lora_alpha": 16},
        "training": {"num_train_epochs": 2, "learning_rate": 1e-3, "max_length": 128},
    })
}
