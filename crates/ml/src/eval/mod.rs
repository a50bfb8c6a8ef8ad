//! Figures of an evaluation, as scikit-learn computes them.

mod classification;
mod regression;
mod report;

pub use classification::{Averages, ClassFigures, Confusion, averages, confusion, multi_label_figures};
pub use regression::{pearson, r_squared, ranks};
pub use report::{EvalReport, Prediction, report};
