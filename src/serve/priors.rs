//! How likely a model finds the answers of a question before it sees a text: what calibration takes off, computed once a question.
//!
//! Each loaded model and adapter has its own, so that they go when it is unloaded. A prior depends on nothing but the weights and
//! the question, bit for bit (a row's result does not depend on its batch), so a kept one is the one that would be computed.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

/// Questions that are kept: at 255 answers each 130 KB.
const MOST: usize = 64;

/// A question by the hash of all that the model reads of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorKey([u8; 32]);

impl PriorKey {
    /// The key of a question whose parts are these, in an order of the caller's.
    pub fn of(parts: &impl serde::Serialize) -> serde_json::Result<Self> {
        Ok(Self(Sha256::digest(serde_json::to_vec(parts)?).into()))
    }
}

/// The priors of one model or adapter, the one that was used last at the end.
#[derive(Debug, Default)]
pub struct Priors(Mutex<Vec<(PriorKey, Vec<f64>)>>);

impl Priors {
    /// The prior that is kept, or that `compute` answers.
    ///
    /// # Errors
    /// Those of `compute`, which are not kept. Two that ask at once may both compute: they find the same.
    pub async fn get_or<E>(&self, key: PriorKey, compute: impl Future<Output = Result<Vec<f64>, E>>) -> Result<Vec<f64>, E> {
        if let Some(kept) = self.find(&key) {
            return Ok(kept);
        }
        let computed = compute.await?;
        self.keep(key, computed.clone());
        Ok(computed)
    }

    fn find(&self, key: &PriorKey) -> Option<Vec<f64>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = kept.iter().position(|(k, _)| k == key)?;
        kept[place..].rotate_left(1);
        kept.last().map(|(_, prior)| prior.clone())
    }

    fn keep(&self, key: PriorKey, prior: Vec<f64>) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|(k, _)| *k != key);
        if kept.len() == MOST {
            kept.remove(0);
        }
        kept.push((key, prior));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;

    #[tokio::test]
    async fn a_prior_is_computed_once_and_the_least_used_goes_first() {
        let (priors, computed) = (Priors::default(), Cell::new(0));
        let ask = async |question: usize| {
            let compute = async {
                computed.set(computed.get() + 1);
                Ok::<_, ()>(vec![question as f64])
            };
            priors.get_or(PriorKey::of(&question).unwrap(), compute).await.unwrap()
        };
        for question in 0..MOST {
            assert_eq!(ask(question).await, ask(question).await);
        }
        assert_eq!(computed.get(), MOST);
        ask(0).await;
        ask(MOST).await;
        assert_eq!(computed.get(), MOST + 1);
        // Question 1 went for the newcomer, and question 0, which had just been asked, did not.
        assert_eq!(ask(0).await, [0.0]);
        assert_eq!(computed.get(), MOST + 1);
        ask(1).await;
        assert_eq!(computed.get(), MOST + 2);
    }

    #[tokio::test]
    async fn what_failed_is_computed_again() {
        let (priors, key) = (Priors::default(), PriorKey::of(&"q").unwrap());
        assert_eq!(priors.get_or(key.clone(), async { Err("full") }).await, Err("full"));
        assert_eq!(priors.get_or(key, async { Ok::<_, ()>(vec![1.0]) }).await, Ok(vec![1.0]));
    }

    #[test]
    fn questions_of_other_parts_have_other_keys() {
        let key = |examples: &[(&str, &str)], answers: &[&str]| PriorKey::of(&(examples, answers)).unwrap();
        assert_eq!(key(&[("a", "b")], &["c"]), key(&[("a", "b")], &["c"]));
        assert_ne!(key(&[("ab", "")], &["c"]), key(&[("a", "b")], &["c"]));
        assert_ne!(key(&[], &["a", "b"]), key(&[], &["b", "a"]));
    }
}
