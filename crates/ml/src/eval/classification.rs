//! Accuracy, precision, recall and F1 (macro, micro, weighted, per class), and the confusion matrix.

/// Counts and figures of one class. An undefined figure (0/0) is 0, as scikit-learn's `zero_division=0`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassFigures {
    /// Share of the rows given to the class that belong to it.
    pub precision: f64,
    /// Share of the class's rows that were given to it.
    pub recall: f64,
    /// Harmonic mean of the two.
    pub f1: f64,
    /// Rows of the class.
    pub support: u64,
}

/// Figures over all classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Averages {
    /// Share of rows that are right; of rows whose whole set of labels is right, for multi-label.
    pub accuracy: f64,
    /// Unweighted mean over classes that occur, in truth or in the predictions; over all labels for multi-label.
    pub macro_: ClassFigures,
    /// From the summed counts.
    pub micro: ClassFigures,
    /// Mean weighted by support.
    pub weighted: ClassFigures,
    /// One entry for each class.
    pub per_class: Vec<ClassFigures>,
}

/// Rows are true classes, columns predicted ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confusion(pub Vec<Vec<u64>>);

/// Counts `(true, predicted)` pairs.
pub fn confusion(classes: usize, pairs: impl Iterator<Item = (usize, usize)>) -> Confusion {
    let mut matrix = vec![vec![0; classes]; classes];
    for (truth, predicted) in pairs {
        matrix[truth][predicted] += 1;
    }
    Confusion(matrix)
}

/// Figures of a single-label evaluation.
pub fn averages(confusion: &Confusion) -> Averages {
    let m = &confusion.0;
    let counts: Vec<Counts> =
        (0..m.len()).map(|c| Counts { hit: m[c][c], predicted: m.iter().map(|row| row[c]).sum(), truth: m[c].iter().sum() }).collect();
    let rows: u64 = counts.iter().map(|c| c.truth).sum();
    let hits: u64 = counts.iter().map(|c| c.hit).sum();
    from_counts(&counts, ratio(hits, rows), false)
}

/// Figures of a multi-label evaluation over `(true, predicted)` sets of classes.
pub fn multi_label_figures(classes: usize, rows: &[(Vec<u32>, Vec<u32>)]) -> Averages {
    let mut counts = vec![Counts { hit: 0, predicted: 0, truth: 0 }; classes];
    let mut exact = 0;
    for (truth, predicted) in rows {
        truth.iter().for_each(|c| counts[*c as usize].truth += 1);
        predicted.iter().for_each(|c| counts[*c as usize].predicted += 1);
        truth.iter().filter(|c| predicted.contains(c)).for_each(|c| counts[*c as usize].hit += 1);
        exact += u64::from(truth.len() == predicted.len() && truth.iter().all(|c| predicted.contains(c)));
    }
    from_counts(&counts, ratio(exact, rows.len() as u64), true)
}

#[derive(Clone, Copy)]
struct Counts {
    hit: u64,
    predicted: u64,
    truth: u64,
}

fn ratio(a: u64, b: u64) -> f64 {
    if b == 0 { 0.0 } else { a as f64 / b as f64 }
}

fn figures(c: Counts) -> ClassFigures {
    let (precision, recall) = (ratio(c.hit, c.predicted), ratio(c.hit, c.truth));
    ClassFigures { precision, recall, f1: ratio(2 * c.hit, c.predicted + c.truth), support: c.truth }
}

/// `absent` says whether classes that occur nowhere count in the unweighted mean, with figures of 0.
fn from_counts(counts: &[Counts], accuracy: f64, absent: bool) -> Averages {
    let per_class: Vec<ClassFigures> = counts.iter().map(|c| figures(*c)).collect();
    let sum = counts.iter().fold(Counts { hit: 0, predicted: 0, truth: 0 }, |a, c| Counts {
        hit: a.hit + c.hit,
        predicted: a.predicted + c.predicted,
        truth: a.truth + c.truth,
    });
    // scikit-learn averages over the classes that occur at all, but over every column of a multi-label matrix.
    let seen: Vec<(ClassFigures, f64)> =
        per_class.iter().zip(counts).filter(|(_, c)| absent || c.truth + c.predicted > 0).map(|(f, _)| (*f, 1.0)).collect();
    let by_support: Vec<(ClassFigures, f64)> = per_class.iter().map(|f| (*f, f.support as f64)).collect();
    Averages { accuracy, macro_: mean(&seen, sum.truth), micro: figures(sum), weighted: mean(&by_support, sum.truth), per_class }
}

fn mean(weighted: &[(ClassFigures, f64)], support: u64) -> ClassFigures {
    let total: f64 = weighted.iter().map(|(_, w)| w).sum();
    let of = |f: fn(&ClassFigures) -> f64| if total == 0.0 { 0.0 } else { weighted.iter().map(|(c, w)| f(c) * w).sum::<f64>() / total };
    ClassFigures { precision: of(|c| c.precision), recall: of(|c| c.recall), f1: of(|c| c.f1), support }
}
