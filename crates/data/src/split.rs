//! Sets a part of the examples aside for evaluation, so that every class is in both parts. The worker calls it when a job has
//! no validation file. The same seed gives the same split for ever: checkpoints and users' comparisons rely on it, so the
//! generator is written out here and a test holds its values.

use std::collections::HashMap;

use crate::examples::Target;

/// Which examples train and which evaluate, as indices in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Examples to train on.
    pub train: Vec<usize>,
    /// Examples to evaluate on.
    pub eval: Vec<usize>,
    /// What the user should know, such as classes that cannot be evaluated.
    pub warnings: Vec<String>,
}

/// Draws `fraction` of the examples for evaluation, class by class: at least one of every class that has two or more; the only
/// example of a class stays in training. Examples with several labels count for the rarest one; numbers are drawn plainly.
/// `labels` are the names of the classes, for the warning.
pub fn stratified_split(targets: &[Target], labels: &[String], fraction: f64, seed: u64) -> Split {
    let mut random = SplitMix64(seed);
    let mut in_eval = vec![false; targets.len()];
    let mut single = Vec::new();
    if fraction > 0.0 {
        for group in groups(targets) {
            let Some(wanted) = eval_rows(group.members.len(), fraction) else {
                single.extend(group.class);
                continue;
            };
            let mut members = group.members;
            // The first steps of a Fisher-Yates shuffle: the front is a fair sample.
            for place in 0..wanted {
                let other = place + random.below(members.len() - place);
                members.swap(place, other);
                in_eval[members[place]] = true;
            }
        }
    }
    let (eval, train) = (0..targets.len()).partition(|index| in_eval[*index]);
    Split { train, eval, warnings: single_row_warning(&single, labels).into_iter().collect() }
}

/// Examples that are drawn from together.
struct Group {
    class: Option<u32>,
    members: Vec<usize>,
}

/// Every example stands in exactly one group; the order of groups and members depends on the targets alone.
fn groups(targets: &[Target]) -> Vec<Group> {
    let classes_of = |target: &Target| match target {
        Target::Class(class) => vec![*class],
        Target::Classes(classes) => classes.clone(),
        Target::Value(_) => Vec::new(),
    };
    let mut counts: HashMap<u32, usize> = HashMap::new();
    for class in targets.iter().flat_map(classes_of) {
        *counts.entry(class).or_default() += 1;
    }
    let mut members: HashMap<Option<u32>, Vec<usize>> = HashMap::new();
    for (index, target) in targets.iter().enumerate() {
        let rarest = classes_of(target).into_iter().min_by_key(|class| (counts[class], *class));
        members.entry(rarest).or_default().push(index);
    }
    let mut groups: Vec<Group> = members.into_iter().map(|(class, members)| Group { class, members }).collect();
    groups.sort_by_key(|group| group.class);
    groups
}

/// How many of `rows` are set aside; `None` if there is only one, which must train.
fn eval_rows(rows: usize, fraction: f64) -> Option<usize> {
    let most = rows.checked_sub(1).filter(|most| *most > 0)?;
    let wanted = (rows as f64 * fraction).round() as usize;
    Some(wanted.clamp(1, most))
}

fn single_row_warning(single: &[u32], labels: &[String]) -> Option<String> {
    const NAMES: usize = 10;
    if single.is_empty() {
        return None;
    }
    let name = |class: &u32| match labels.get(*class as usize) {
        Some(label) => format!("\"{label}\""),
        None => format!("class {class}"),
    };
    let mut names: Vec<String> = single.iter().take(NAMES).map(name).collect();
    if single.len() > NAMES {
        names.push(format!("and {} more", single.len() - NAMES));
    }
    Some(format!("labels with a single row stay in training and are not evaluated: {}", names.join(", ")))
}

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix of bits a number, fixed for ever by its published constants.
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `bound`. The bias of the multiplication is below 2⁻³² for any number of rows that fits in memory.
    fn below(&mut self, bound: usize) -> usize {
        ((u128::from(self.next()) * bound as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn classes(counts: &[usize]) -> Vec<Target> {
        let rows = counts.iter().enumerate();
        rows.flat_map(|(class, count)| vec![Target::Class(class as u32); *count]).collect()
    }

    #[test]
    fn the_generator_gives_the_published_numbers() {
        let mut random = SplitMix64(1_234_567);
        let numbers = [random.next(), random.next(), random.next()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn the_same_seed_gives_the_same_split_for_ever() {
        let targets = classes(&[10, 10]);
        let split = stratified_split(&targets, &[], 0.2, 7);
        assert_eq!(split, stratified_split(&targets, &[], 0.2, 7));
        assert_ne!(split.eval, stratified_split(&targets, &[], 0.2, 8).eval);
        assert_eq!(split.eval, GOLDEN);
    }

    const GOLDEN: [usize; 4] = [1, 3, 16, 19];

    #[test]
    fn every_class_with_two_rows_is_in_both_parts() {
        let targets = classes(&[100, 2, 1, 30]);
        let labels = ["a", "b", "only", "d"].map(String::from);
        let split = stratified_split(&targets, &labels, 0.1, 1);
        let count = |part: &[usize], class| part.iter().filter(|index| targets[**index] == Target::Class(class)).count();
        let eval: Vec<usize> = (0..4).map(|class| count(&split.eval, class)).collect();
        let train: Vec<usize> = (0..4).map(|class| count(&split.train, class)).collect();
        assert_eq!(eval, [10, 1, 0, 3]);
        assert_eq!(train, [90, 1, 1, 27]);
        assert_eq!(split.warnings.len(), 1);
        assert!(split.warnings[0].contains("\"only\""));
        let mut all = [split.train, split.eval].concat();
        all.sort_unstable();
        assert_eq!(all, (0..targets.len()).collect::<Vec<_>>());
    }

    #[test]
    fn numbers_are_split_plainly() {
        let targets: Vec<Target> = (0..50).map(|i| Target::Value(i as f32)).collect();
        let split = stratified_split(&targets, &[], 0.2, 3);
        assert_eq!((split.train.len(), split.eval.len()), (40, 10));
        assert!(split.warnings.is_empty());
    }

    #[test]
    fn a_rare_label_among_several_is_evaluated_too() {
        let mut targets = vec![Target::Classes(vec![0]); 60];
        targets.extend(vec![Target::Classes(vec![0, 1]); 4]);
        targets.extend(vec![Target::Classes(Vec::new()); 10]);
        let split = stratified_split(&targets, &[], 0.1, 3);
        assert!(split.eval.iter().any(|index| (60..64).contains(index)));
        assert!(split.eval.iter().any(|index| *index >= 64));
    }

    #[test]
    fn without_a_fraction_all_rows_train() {
        let split = stratified_split(&classes(&[3, 1]), &[], 0.0, 3);
        assert_eq!((split.train.len(), split.eval.len()), (4, 0));
        assert!(split.warnings.is_empty());
        assert_eq!(stratified_split(&[], &[], 0.5, 3).eval.len(), 0);
    }
}
