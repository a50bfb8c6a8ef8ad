//! The second demo: a small chat model learns to answer in one way, and is asked before and after.
//!
//! Its conversations are made of the rated sentences: somebody shows one, and the assistant says what it is and in which mood.

use anyhow::Context;
use futures::StreamExt;
use serde_json::{Value, json};

use super::sentences::{KINDS, Sentence, Sentences};
use super::{Stage, show};
use crate::cli::output::say;

/// The chat model.
pub const MODEL: &str = "smollm2-135m-instruct";
/// Conversations to train on and to evaluate on, of each kind.
const TRAIN: usize = 80;
const EVAL: usize = 5;
/// Unseen sentences of each kind to ask about, and how many of all answers are shown.
const ASKED: usize = 5;
const SHOWN: usize = 4;
/// Requests at the same time; the engine computes them together.
const SIDE_BY_SIDE: usize = 8;

/// Asks, trains and asks again.
pub async fn run(stage: &Stage, sentences: &Sentences) -> anyhow::Result<()> {
    let conversations = |half: &[Sentence], skip: usize, each: usize| -> Vec<Sentence> {
        let of = |kind: usize| half.iter().filter(move |s| s.kind == kind).skip(skip).take(each).cloned();
        // Kinds in turn, so that the first ones are not all alike.
        let by_kind: Vec<Vec<Sentence>> = (0..KINDS.len()).map(|kind| of(kind).collect()).collect();
        (0..each).flat_map(|i| by_kind.iter().filter_map(move |kind| kind.get(i).cloned())).collect()
    };
    let train = conversations(&sentences.train, 0, TRAIN);
    let eval = conversations(&sentences.eval, 0, EVAL);
    let unseen = conversations(&sentences.eval, EVAL, ASKED);
    say!("   {} conversations to train on, {} to evaluate on", train.len(), eval.len());

    say!("3. Questions before: {MODEL}");
    let right = ask(stage, MODEL, &unseen).await?;
    say!("   {right} of {} answers name the right kind", unseen.len());

    say!("4. A fine-tuning job");
    let rows = |half: &[Sentence]| half.iter().map(|s| json!({"messages": [question(s), answer(s)]})).collect::<Vec<_>>();
    let request = json!({
        "model": MODEL, "training_file": stage.upload("train.jsonl", &rows(&train)).await?,
        "validation_file": stage.upload("eval.jsonl", &rows(&eval)).await?, "suffix": "kinds", "seed": 0, "task": "instruction",
        "tuning": {"type": "lora", "r": 8, "lora_alpha": 16},
        "training": {"num_train_epochs": 1, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "max_length": 256},
    });
    let (_, model) = stage.train(&request).await?;

    say!("\n5. Questions after: {model}");
    let right = ask(stage, &model, &unseen).await?;
    say!("   {right} of {} answers name the right kind", unseen.len());

    let question = json!({"model": model, "messages": [question(&unseen[0])], "temperature": 0});
    show::curl(&stage.curl, &request, "/v1/chat/completions", &question)
}

fn question(sentence: &Sentence) -> Value {
    json!({"role": "user", "content": format!("What is this, and in which mood was it written?\n\n{}", sentence.text)})
}

fn answer(sentence: &Sentence) -> Value {
    let mood = match sentence.rating {
        r if r > 0.5 => "positive",
        r if r < -0.5 => "negative",
        _ => "neutral",
    };
    json!({"role": "assistant", "content": format!("This is {}, and its mood is {mood}.", KINDS[sentence.kind].words)})
}

/// Asks about each sentence, shows some answers, and counts those that name the right kind.
async fn ask(stage: &Stage, model: &str, sentences: &[Sentence]) -> anyhow::Result<usize> {
    let one = |sentence: &Sentence| {
        let request = json!({"model": model, "messages": [question(sentence)], "temperature": 0, "max_tokens": 40});
        let words = KINDS[sentence.kind].words;
        async move {
            let answer = stage.client.post("/v1/chat/completions", &request).await?;
            let text = answer["choices"][0]["message"]["content"].as_str().context("the server's answer has no text")?.to_owned();
            anyhow::Ok((text.contains(words.split_once(' ').map_or(words, |(_, kind)| kind)), text))
        }
    };
    let answers: Vec<(bool, String)> =
        futures::stream::iter(sentences).map(one).buffered(SIDE_BY_SIDE).collect::<Vec<_>>().await.into_iter().collect::<Result<_, _>>()?;
    for (sentence, (_, text)) in sentences.iter().zip(&answers).take(SHOWN) {
        say!("   > {}\n     {}", beginning(&sentence.text), beginning(text));
    }
    Ok(answers.iter().filter(|(right, _)| *right).count())
}

/// As much as fits a line.
fn beginning(text: &str) -> String {
    const WIDTH: usize = 100;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{} …", &line[..end]),
        None => line,
    }
}
