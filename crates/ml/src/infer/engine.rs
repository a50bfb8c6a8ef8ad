//! Continuous batching: sequences join and leave a running batch at token steps.
//!
//! The server runs [`Engine::step`] on a thread of its own. Each step computes one token of every sequence that has its prompt
//! behind it, and beside them a chunk of the prompts of those that have not. What a sequence reads is in pages (`page_pool.rs`);
//! when they run out, the sequence that came last gives its own up and is computed again later, with the same bits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::decoder::ServedDecoder;
use super::page_pool::PagePool;
use super::sequence::{Finish, Request, Sequence};
use crate::error::Result;
use crate::models::BackwardPlan;
use crate::nn::{Batch, CachedPass, Ctx, LayerPages, LoraRange};
use tunesmith_ops::paged::PAGE;

/// Bounds of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineLimits {
    /// Bytes of keys and values.
    pub cache_bytes: usize,
    /// Sequences that are computed at the same time.
    pub max_sequences: usize,
    /// Tokens of prompts in one step, beside those of running sequences.
    pub prefill_tokens: usize,
}

/// The running batch of one base model.
pub struct Engine {
    model: Arc<ServedDecoder>,
    layers: Vec<LayerPages>,
    pool: PagePool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    limits: EngineLimits,
}

/// The tokens that a sequence brings into a step.
struct Share {
    sequence: usize,
    start: usize,
    end: usize,
}

/// Bytes of the keys and values of a sequence of so many tokens, in whole pages.
pub fn cache_bytes_of(model: &ServedDecoder, tokens: usize) -> usize {
    let c = model.config();
    2 * 4 * c.kv_heads * c.head_dim * c.layers.len() * tokens.next_multiple_of(PAGE)
}

impl Engine {
    /// An engine without work. The cache holds as many pages as fit, but not more than all sequences could fill.
    pub fn new(model: Arc<ServedDecoder>, limits: EngineLimits) -> Self {
        let c = model.config();
        let page_elements = c.kv_heads * c.head_dim * PAGE;
        let most = limits.max_sequences * model.max_length().div_ceil(PAGE);
        let pages = (limits.cache_bytes / cache_bytes_of(&model, PAGE)).clamp(1, most.max(1));
        let layer = || LayerPages { k: vec![0.0; pages * page_elements], v: vec![0.0; pages * page_elements] };
        let layers = (0..c.layers.len()).map(|_| layer()).collect();
        Self { model, layers, pool: PagePool::new(pages), waiting: VecDeque::new(), running: Vec::new(), limits }
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.layers.iter().map(|l| 4 * (l.k.len() + l.v.len())).sum()
    }

    /// Longest sequence, prompt and answer together: what the model knows, or what the cache has room for.
    pub fn max_length(&self) -> usize {
        (self.pool.total() * PAGE).min(self.model.max_length())
    }

    /// Takes a request in; its answer goes to its sink.
    pub fn submit(&mut self, request: Request) {
        let room = self.pool.total() * PAGE;
        let answer = usize::from(request.max_tokens > 0);
        let sequence = Sequence::new(request, self.max_length());
        let tokens = sequence.tokens.len();
        if tokens + answer > room {
            return sequence
                .fail(&format!("the prompt has {tokens} tokens, and the cache has room for {room}; raise budgets.kv_cache_bytes"));
        }
        self.waiting.push_back(sequence);
    }

    /// Whether nothing is left to do.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// Sequences in work, and sequences in line.
    pub fn load(&self) -> (usize, usize) {
        (self.running.len(), self.waiting.len())
    }

    /// Ends every sequence with an error: the server ends.
    pub fn abort(&mut self, why: &str) {
        for mut sequence in self.running.drain(..).chain(self.waiting.drain(..)) {
            self.pool.release(&mut sequence.table);
            sequence.fail(why);
        }
    }

    /// One step of every sequence in work.
    ///
    /// # Errors
    /// If the model cannot be run; every sequence has been told.
    pub fn step(&mut self) -> Result<()> {
        self.drop_abandoned();
        self.admit();
        let shares = self.plan();
        if shares.is_empty() {
            return Ok(());
        }
        match self.run(&shares) {
            Ok(()) => {
                self.retire();
                Ok(())
            }
            Err(error) => {
                self.abort(&format!("the model failed: {error}"));
                Err(error)
            }
        }
    }

    fn drop_abandoned(&mut self) {
        let pool = &mut self.pool;
        self.running.retain_mut(|s| {
            let gone = s.is_abandoned();
            if gone {
                pool.release(&mut s.table);
            }
            !gone
        });
        self.waiting.retain(|s| !s.is_abandoned());
    }

    fn admit(&mut self) {
        while self.running.len() < self.limits.max_sequences
            && let Some(next) = self.waiting.front()
        {
            // Room for the prompt and a token: less would only mean that it gives way again at once.
            if (next.tokens.len() + 1).div_ceil(PAGE) > self.pool.free() && !self.running.is_empty() {
                return;
            }
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            (sequence.table, sequence.computed) = self.pool.share(sequence.owner(), sequence.shareable());
            sequence.note_shared();
            self.running.push(sequence);
        }
    }

    /// What each sequence computes in this step. Those that do not get pages give way, the last one first.
    fn plan(&mut self) -> Vec<Share> {
        let mut budget = self.limits.prefill_tokens;
        let mut shares: Vec<Share> = Vec::new();
        let mut i = 0;
        while i < self.running.len() {
            let s = &self.running[i];
            let left = s.tokens.len() - s.computed;
            let take = if left == 1 { 1 } else { left.min(budget) };
            if take == 0 {
                i += 1;
                continue;
            }
            let (start, end) = (s.computed, s.computed + take);
            if self.pool.reserve(&mut self.running[i].table, end) {
                if left > 1 {
                    budget -= take;
                }
                shares.push(Share { sequence: i, start, end });
                i += 1;
            } else if i + 1 < self.running.len() {
                self.preempt_last();
            } else {
                // The last one itself: it waits for the others, or for their pages.
                self.preempt_last();
                break;
            }
        }
        // Rows of one adapter stand together.
        shares.sort_by_key(|s| self.running[s.sequence].owner());
        shares
    }

    fn preempt_last(&mut self) {
        if let Some(mut sequence) = self.running.pop() {
            self.pool.release(&mut sequence.table);
            sequence.give_way();
            self.waiting.push_front(sequence);
        }
    }

    fn run(&mut self, shares: &[Share]) -> Result<()> {
        let mut batch = Batch::new();
        let (mut starts, mut wanted, mut wanted_of) = (Vec::new(), Vec::new(), Vec::new());
        let mut route: Vec<LoraRange> = Vec::new();
        for share in shares {
            let s = &self.running[share.sequence];
            let first = batch.tokens();
            batch.push_at(&s.tokens[share.start..share.end], share.start as u32);
            starts.push(share.start as u32);
            let rows = s.rows_with_logits(share.start, share.end);
            wanted_of.push((wanted.len()..wanted.len() + rows.len(), rows.start));
            wanted.extend(rows.map(|r| (first + r - share.start) as u32));
            if let Some(adapter) = s.adapter() {
                match route.last_mut() {
                    Some(last) if std::ptr::eq(last.adapter, adapter) => last.rows.end = batch.tokens(),
                    _ => route.push(LoraRange { rows: first..batch.tokens(), adapter }),
                }
            }
        }
        let tables: Vec<&[u32]> = shares.iter().map(|s| &self.running[s.sequence].table.pages[..]).collect();
        let cache = CachedPass { layers: &mut self.layers, starts: &starts, tables: &tables };
        let mut ctx = Ctx::cached(&batch, &route, cache);
        let plan = BackwardPlan { first: usize::MAX, checkpointing: false };
        let decoder = self.model.decoder();
        let hidden = decoder.forward(&mut ctx, plan)?;
        let logits = if wanted.is_empty() { None } else { Some(decoder.logits(&hidden, &wanted, &mut ctx)?.to_vec2::<f32>()?) };
        drop(route);
        let mut logits = logits.unwrap_or_default();
        for (share, (wanted, first)) in shares.iter().zip(wanted_of) {
            let s = &mut self.running[share.sequence];
            s.computed = share.end;
            self.pool.computed(s.owner(), &mut s.table, &s.tokens[..share.end]);
            s.take_logits(&mut logits[wanted], first, &self.model);
        }
        Ok(())
    }

    /// Lets finished sequences go.
    fn retire(&mut self) {
        let pool = &mut self.pool;
        self.running.retain_mut(|s| {
            let done = s.is_finished();
            if done {
                pool.release(&mut s.table);
            }
            !done
        });
    }
}

/// Why an answer ended, for whoever reads a [`Finish`] as text.
impl std::fmt::Display for Finish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stop => "stop",
            Self::Length => "length",
        })
    }
}
