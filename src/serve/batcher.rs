//! The queue of one base model: rows of all requests, and of all its adapters, are answered in batches filled by tokens.
//!
//! A thread of its own takes what waits, drops rows whose client has left, and runs one pass. Requests take turns, row by row, so that a
//! few rows need not wait for the end of many. The queue is bounded by the rows and tokens of all models together; what does not fit
//! is refused at once.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::oneshot;
use tunesmith_ml::error::MlError;
use tunesmith_ml::infer::{Asked, ServedClassifier, ServedEncoder, answer};
use tunesmith_ml::text::Encoded;

use super::pool::Pool;

/// Tokens in a pass; more does not make it faster, and makes later rows wait.
const BATCH_TOKENS: usize = 2048;

/// Rows and tokens that wait, over all models.
#[derive(Debug)]
pub struct Waiting {
    rows: AtomicUsize,
    tokens: AtomicUsize,
    max_rows: usize,
    max_tokens: usize,
}

/// The queue has no room for a request.
#[derive(Debug, thiserror::Error)]
#[error("{waiting} rows wait already, and the queue holds {limit}; try again in a moment")]
pub struct QueueFull {
    /// Rows that wait.
    pub waiting: usize,
    /// Rows that may wait.
    pub limit: usize,
}

impl Waiting {
    /// Bounds of the queue.
    pub fn new(max_rows: usize, max_tokens: usize) -> Self {
        Self { rows: AtomicUsize::new(0), tokens: AtomicUsize::new(0), max_rows, max_tokens }
    }

    /// Takes room for a request. One that is larger than the whole queue is let in when nothing else waits.
    fn enter(&self, rows: usize, tokens: usize) -> Result<(), QueueFull> {
        let before = self.rows.fetch_add(rows, Ordering::AcqRel);
        let tokens_before = self.tokens.fetch_add(tokens, Ordering::AcqRel);
        let fits = before + rows <= self.max_rows && tokens_before + tokens <= self.max_tokens;
        if fits || before == 0 {
            return Ok(());
        }
        self.leave(rows, tokens);
        Err(QueueFull { waiting: before, limit: self.max_rows })
    }

    fn leave(&self, rows: usize, tokens: usize) {
        self.rows.fetch_sub(rows, Ordering::AcqRel);
        self.tokens.fetch_sub(tokens, Ordering::AcqRel);
    }

    /// Rows that wait or run.
    pub fn rows(&self) -> usize {
        self.rows.load(Ordering::Acquire)
    }
}

/// What a request wants of its rows.
#[derive(Clone)]
pub enum Question {
    /// A classifier's logits.
    Logits(Arc<ServedClassifier>),
    /// Vectors, before they are normalised.
    Vectors {
        /// Whose.
        encoder: Arc<ServedEncoder>,
        /// Tokens of the prompt before each text.
        prompt_tokens: usize,
    },
}

impl Question {
    fn asked(&self) -> Asked<'_> {
        match self {
            Self::Logits(classifier) => Asked::Logits(classifier),
            Self::Vectors { encoder, prompt_tokens } => Asked::Vector { encoder, prompt_tokens: *prompt_tokens },
        }
    }
}

/// A row's numbers; an error is shared by the rows of its pass.
pub type RowAnswer = Result<Vec<f32>, Arc<MlError>>;

struct Row {
    encoded: Encoded,
    question: Question,
    answer: oneshot::Sender<RowAnswer>,
}

/// The rows of each request; the request whose turn it is comes first.
#[derive(Default)]
struct Queue {
    requests: VecDeque<VecDeque<Row>>,
    closed: bool,
}

/// As many rows as fit a pass, one at least where any wait: one of each request in turn.
fn take_batch<R>(requests: &mut VecDeque<VecDeque<R>>, tokens_of: impl Fn(&R) -> usize) -> Vec<R> {
    let mut tokens = 0;
    let mut batch = Vec::new();
    while let Some(mut rows) = requests.pop_front() {
        tokens += rows.front().map_or(0, &tokens_of);
        if tokens > BATCH_TOKENS && !batch.is_empty() {
            requests.push_front(rows);
            break;
        }
        batch.extend(rows.pop_front());
        if !rows.is_empty() {
            requests.push_back(rows);
        }
    }
    batch
}

/// The queue of one base model; its thread ends when the last handle is dropped.
pub struct Batcher {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
    waiting: Arc<Waiting>,
    pool: Arc<Pool>,
}

impl Batcher {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(waiting: Arc<Waiting>, pool: Arc<Pool>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { queue: Mutex::default(), filled: Condvar::new(), waiting, pool });
        let worker = shared.clone();
        std::thread::Builder::new().name("batcher".into()).spawn(move || worker.run())?;
        Ok(Self { shared })
    }

    /// Queues rows of one request; the receivers give each row's answer, in order.
    ///
    /// # Errors
    /// [`QueueFull`]; then nothing is queued.
    pub fn submit(&self, question: &Question, rows: Vec<Encoded>) -> Result<Vec<oneshot::Receiver<RowAnswer>>, QueueFull> {
        let tokens = rows.iter().map(|r| r.ids.len()).sum();
        self.shared.waiting.enter(rows.len(), tokens)?;
        let row = |encoded| {
            let (answer, receiver) = oneshot::channel();
            (Row { encoded, question: question.clone(), answer }, receiver)
        };
        let (rows, receivers): (VecDeque<_>, _) = rows.into_iter().map(row).unzip();
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).requests.push_back(rows);
        self.shared.filled.notify_one();
        Ok(receivers)
    }
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn run(&self) {
        while let Some(batch) = self.take() {
            let (rows, tokens) = (batch.len(), batch.iter().map(|r| r.encoded.ids.len()).sum());
            // A client that has left gets no answer, and costs nothing.
            let batch: Vec<Row> = batch.into_iter().filter(|r| !r.answer.is_closed()).collect();
            self.answer(batch);
            self.waiting.leave(rows, tokens);
        }
    }

    /// Waits for rows and takes a batch of them; nothing when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Row>> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        while queue.requests.is_empty() {
            if queue.closed {
                return None;
            }
            queue = self.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        Some(take_batch(&mut queue.requests, |row| row.encoded.ids.len()))
    }

    fn answer(&self, batch: Vec<Row>) {
        let pass = || {
            let rows: Vec<_> = batch.iter().map(|r| (&r.encoded, r.question.asked())).collect();
            self.pool.install(|| answer(&rows))
        };
        // A defect in the maths must not end the thread that all later requests wait for.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(pass))
            .unwrap_or_else(|_| Err(MlError::Format("the pass failed; the server's log says more".to_owned())));
        // A send fails only when the client has left meanwhile.
        match result {
            Ok(answers) => batch.into_iter().zip(answers).for_each(|(row, numbers)| drop(row.answer.send(Ok(numbers)))),
            Err(error) => {
                let error = Arc::new(error);
                batch.into_iter().for_each(|row| drop(row.answer.send(Err(error.clone()))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests whose rows have so many tokens each.
    fn requests(tokens: &[&[usize]]) -> VecDeque<VecDeque<usize>> {
        tokens.iter().map(|rows| rows.iter().copied().collect()).collect()
    }

    #[test]
    fn a_small_request_is_in_the_next_pass_whatever_waits_before_it() {
        let mut waiting = requests(&[&[100; 1000], &[7]]);
        let batch = take_batch(&mut waiting, |tokens| *tokens);
        assert!(batch.contains(&7), "{batch:?}");
        assert_eq!(batch.iter().filter(|tokens| **tokens == 100).count(), 20, "the rest of the pass is the large one's");
        assert_eq!(waiting, requests(&[&[100; 980]]));
    }

    #[test]
    fn requests_take_turns_from_pass_to_pass_and_keep_the_order_of_their_rows() {
        let mut waiting = requests(&[&[1000, 1001, 1002], &[900, 901, 902]]);
        let mut passes = Vec::new();
        while !waiting.is_empty() {
            passes.push(take_batch(&mut waiting, |tokens| *tokens));
        }
        assert_eq!(passes, [vec![1000, 900], vec![1001, 901], vec![1002, 902]]);
    }

    #[test]
    fn a_row_that_is_longer_than_a_pass_has_one_of_its_own() {
        let mut waiting = requests(&[&[BATCH_TOKENS + 1], &[5], &[]]);
        assert_eq!(take_batch(&mut waiting, |tokens| *tokens), [BATCH_TOKENS + 1]);
        assert_eq!(take_batch(&mut waiting, |tokens| *tokens), [5]);
        assert_eq!(take_batch(&mut waiting, |tokens| *tokens), [0; 0]);
    }
}
