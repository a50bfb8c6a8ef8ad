//! Training: one readable loop, its schedule, order, losses, checkpoints and the hooks of its caller.

mod classifier;
mod evaluate;
mod loss;
mod observer;
mod order;
mod prepare;
mod run;
mod schedule;
mod speed;
mod state;

pub use classifier::{Classifier, precision};
pub use evaluate::EVAL_TOKENS;
pub use loss::{LossSettings, class_weights, loss};
pub use observer::{CheckpointReady, Control, Level, Observer, Progress};
pub use order::{EpochOrder, Step};
pub use prepare::{Plan, Prepared, TrainJob, base_limit};
pub use run::{Finished, Outcome};
pub use schedule::Schedule;
pub use state::TrainState;
