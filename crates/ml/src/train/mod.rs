//! Training: one readable loop, its schedule, order, losses, checkpoints and the hooks of its caller.

mod classification;
mod classifier;
mod estimate;
mod evaluate;
mod fit;
mod language;
mod language_model;
mod loss;
mod observer;
mod order;
mod prepare;
mod run;
mod schedule;
mod speed;
mod state;
mod trainee;

pub use classifier::{Classifier, precision};
pub use evaluate::EVAL_TOKENS;
pub use fit::check_fit;
pub use language::{TextRow, evaluate_language};
pub use language_model::{LanguageLoss, LanguageModel, Sequence};
pub use loss::{LossSettings, class_weights, loss};
pub use observer::{CheckpointReady, Control, Level, Observer, Progress};
pub use order::{EpochOrder, Step};
pub use prepare::{JobRows, Plan, Prepared, TrainJob, base_limit};
pub use run::{FinalEvaluation, Finished, Outcome};
pub use schedule::Schedule;
pub use state::TrainState;
