//! From a row of logits to a token: penalties, bias, truncation of the distribution, and a draw that depends on nothing but the
//! request's seed and the number of tokens before it.

use std::collections::HashMap;

/// How tokens are chosen. The defaults draw from the whole distribution as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it; 0 takes the likeliest token.
    pub temperature: f32,
    /// Draw only from the likeliest tokens that together reach this probability (Holtzman et al. 2020).
    pub top_p: f32,
    /// Draw only from so many of the likeliest tokens.
    pub top_k: Option<usize>,
    /// Draw only from tokens at least so likely, relative to the likeliest (Nguyen et al. 2024).
    pub min_p: f32,
    /// Logits of tokens in prompt or answer are divided by it, multiplied where negative (Keskar et al. 2019).
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens in the answer.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens in the answer, once for each time.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// What draws depend on.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: None,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

/// The likeliest tokens of a row: those that the truncations look at first. More are sorted only where they are needed.
const FIRST_SORTED: usize = 512;

/// A sequence's sampler.
pub struct Sampler {
    settings: Sampling,
    /// How often each token stands in the answer; in the prompt counts as 0.
    seen: HashMap<u32, u32>,
    drawn: u64,
}

impl Sampler {
    /// A sampler of an answer to `prompt`.
    pub fn new(settings: Sampling, prompt: &[u32]) -> Self {
        let seen = if settings.repetition_penalty == 1.0 { HashMap::new() } else { prompt.iter().map(|id| (*id, 0)).collect() };
        Self { settings, seen, drawn: 0 }
    }

    /// Chooses the next token. `logits` are changed; `allowed` keeps only the tokens that a constraint lets pass.
    pub fn next(&mut self, logits: &mut [f32], allowed: Option<&dyn Fn(u32) -> bool>) -> u32 {
        self.penalise(logits);
        if let Some(allowed) = allowed {
            for (id, logit) in logits.iter_mut().enumerate() {
                if !allowed(id as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        let token = if self.settings.temperature == 0.0 { likeliest(logits) } else { self.draw(logits) };
        self.drawn += 1;
        let s = &self.settings;
        if s.repetition_penalty != 1.0 || s.presence_penalty != 0.0 || s.frequency_penalty != 0.0 {
            *self.seen.entry(token).or_insert(0) += 1;
        }
        token
    }

    fn penalise(&self, logits: &mut [f32]) {
        let s = &self.settings;
        for (&id, &count) in &self.seen {
            let Some(logit) = logits.get_mut(id as usize) else { continue };
            *logit = if *logit > 0.0 { *logit / s.repetition_penalty } else { *logit * s.repetition_penalty };
            if count > 0 {
                *logit -= s.presence_penalty + s.frequency_penalty * count as f32;
            }
        }
        for (id, bias) in &s.logit_bias {
            if let Some(logit) = logits.get_mut(*id as usize) {
                *logit += bias;
            }
        }
    }

    fn draw(&self, logits: &[f32]) -> u32 {
        let s = &self.settings;
        let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |logit: f32| (f64::from(logit - top) / f64::from(s.temperature)).exp();
        let place = uniform(s.seed, self.drawn);
        let whole = s.top_p >= 1.0 && s.top_k.is_none() && s.min_p <= 0.0;
        let mut candidates: Vec<(u32, f64)> = Vec::new();
        if whole {
            candidates.extend(logits.iter().enumerate().map(|(id, logit)| (id as u32, weight(*logit))));
            return pick(&candidates, place);
        }
        let total: f64 = logits.iter().map(|logit| weight(*logit)).sum();
        candidates
            .extend(logits.iter().enumerate().map(|(id, logit)| (id as u32, weight(*logit))).filter(|(_, w)| *w >= f64::from(s.min_p)));
        let most = s.top_k.unwrap_or(usize::MAX).min(candidates.len());
        let mut sorted = 0;
        let mut want = FIRST_SORTED;
        loop {
            // Likelier first; of two that are equally likely the one with the smaller id.
            let order = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            let end = want.min(candidates.len());
            if end < candidates.len() && end > sorted {
                candidates[sorted..].select_nth_unstable_by(end - sorted - 1, order);
            }
            candidates[sorted..end].sort_unstable_by(order);
            let mut sum = 0.0;
            for (i, (_, w)) in candidates[..end].iter().enumerate() {
                sum += w;
                if i + 1 >= most || sum >= f64::from(s.top_p) * total {
                    candidates.truncate(i + 1);
                    return pick(&candidates, place);
                }
            }
            if end == candidates.len() {
                return pick(&candidates, place);
            }
            (sorted, want) = (end, want * 8);
        }
    }
}

/// The candidate at `place` of the sum of all weights.
fn pick(candidates: &[(u32, f64)], place: f64) -> u32 {
    let total: f64 = candidates.iter().map(|(_, w)| w).sum();
    let (mut sum, goal) = (0.0, place * total);
    for (id, w) in candidates {
        sum += w;
        if sum > goal && *w > 0.0 {
            return *id;
        }
    }
    candidates.iter().rev().find(|(_, w)| *w > 0.0).map_or(0, |(id, _)| *id)
}

/// The token with the largest logit; of equal ones the first.
pub fn likeliest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (i, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = i;
        }
    }
    best as u32
}

/// Uniform in [0, 1) for draw number `n` of a seed (SplitMix64 of both, Steele et al. 2014).
fn uniform(seed: u64, n: u64) -> f64 {
    let mix = |x: u64| {
        let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    (mix(mix(seed) ^ n) >> 11) as f64 / (1u64 << 53) as f64
}

/// Log-probabilities of a row as the model gave it: the token's own, and the `top` likeliest with theirs.
pub fn log_probabilities(logits: &[f32], token: u32, top: usize) -> (f32, Vec<(u32, f32)>) {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|l| f64::from(l - max).exp()).sum();
    let log = |id: u32| (f64::from(logits[id as usize] - max) - sum.ln()) as f32;
    if top == 0 {
        return (log(token), Vec::new());
    }
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let top = top.min(ids.len());
    if top < ids.len() {
        ids.select_nth_unstable_by(top - 1, order);
    }
    ids.truncate(top);
    ids.sort_unstable_by(order);
    (log(token), ids.into_iter().map(|id| (id, log(id))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 5] = [1.0, 3.0, 2.0, -1.0, 3.0];

    fn counts(settings: &Sampling) -> [usize; 5] {
        let mut counts = [0; 5];
        for seed in 0..4000 {
            let mut sampler = Sampler::new(Sampling { seed, ..settings.clone() }, &[]);
            counts[sampler.next(&mut LOGITS.to_vec(), None) as usize] += 1;
        }
        counts
    }

    #[test]
    fn draws_follow_the_distribution() {
        let counts = counts(&Sampling::default());
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        for (count, logit) in counts.iter().zip(LOGITS) {
            let expected = 4000.0 * f64::from(logit).exp() / total;
            assert!((*count as f64 - expected).abs() < 4.0 * expected.sqrt() + 4.0, "{counts:?}");
        }
    }

    #[test]
    fn truncations_leave_only_the_likeliest() {
        let nonzero = |s: Sampling| counts(&s).map(|c| c > 0);
        assert_eq!(nonzero(Sampling { top_k: Some(2), ..Sampling::default() }), [false, true, false, false, true]);
        assert_eq!(nonzero(Sampling { top_p: 0.5, ..Sampling::default() }), [false, true, false, false, true]);
        assert_eq!(nonzero(Sampling { top_p: 0.3, ..Sampling::default() }), [false, true, false, false, false]);
        assert_eq!(nonzero(Sampling { min_p: 0.3, ..Sampling::default() }), [false, true, true, false, true]);
    }

    #[test]
    fn truncation_by_probability_looks_as_far_as_it_must() {
        // More equal tokens than are sorted at first: nine tenths of them may be drawn.
        let logits = vec![0.0f32; 3000];
        let drawn: std::collections::BTreeSet<u32> = (0..3000)
            .map(|seed| Sampler::new(Sampling { seed, top_p: 0.9, ..Sampling::default() }, &[]).next(&mut logits.clone(), None))
            .collect();
        assert!(drawn.len() > 1500 && drawn.iter().all(|id| *id < 2701), "{} {:?}", drawn.len(), drawn.last());
    }

    #[test]
    fn the_same_seed_gives_the_same_tokens_and_other_draws_other_ones() {
        let draw = |seed| {
            let mut sampler = Sampler::new(Sampling { seed, ..Sampling::default() }, &[]);
            (0..32).map(|_| sampler.next(&mut LOGITS.to_vec(), None)).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
        assert!(draw(7).iter().any(|t| *t != draw(7)[0]));
    }

    #[test]
    fn penalties_and_bias_turn_the_likeliest_away() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut sampler = Sampler::new(Sampling { presence_penalty: 2.5, ..greedy.clone() }, &[1]);
        let tokens: Vec<u32> = (0..3).map(|_| sampler.next(&mut LOGITS.to_vec(), None)).collect();
        assert_eq!(tokens, [1, 4, 2]);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 4.0, ..greedy.clone() }, &[1, 4]);
        assert_eq!(sampler.next(&mut LOGITS.to_vec(), None), 2);
        let mut sampler = Sampler::new(Sampling { logit_bias: vec![(3, 100.0)], ..greedy.clone() }, &[]);
        assert_eq!(sampler.next(&mut LOGITS.to_vec(), None), 3);
        let mut sampler = Sampler::new(greedy, &[]);
        assert_eq!(sampler.next(&mut LOGITS.to_vec(), Some(&|id| id == 3 || id == 0)), 0);
    }

    #[test]
    fn log_probabilities_sum_to_one() {
        let (own, top) = log_probabilities(&LOGITS, 2, 5);
        let sum: f32 = top.iter().map(|(_, p)| p.exp()).sum();
        assert!((sum - 1.0).abs() < 1e-5);
        assert_eq!(top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 4, 2, 0, 3]);
        assert_eq!(top[2].1, own);
    }
}
