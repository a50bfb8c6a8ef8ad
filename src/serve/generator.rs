//! The engine of one base model on a thread of its own: requests go in by a queue, answers come out by channels.
//!
//! The queue is bounded by the requests of all models together; what does not fit is refused at once. A client that leaves drops
//! its receiver, which frees its place at the next step.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use tokio::sync::{Notify, mpsc};
use tunesmith_ml::infer::{Engine, EngineLimits, Event, Request, ServedDecoder, Sink};

use super::batcher::QueueFull;
use super::pool::Pool;

/// Requests that wait or run, over all models.
#[derive(Debug)]
pub struct Requests {
    count: AtomicUsize,
    most: usize,
    /// Told whenever a place is given back.
    freed: Notify,
}

impl Requests {
    /// A queue of so many requests.
    pub fn new(most: usize) -> Self {
        Self { count: AtomicUsize::new(0), most, freed: Notify::new() }
    }

    /// Requests that wait or run.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    fn enter(self: &Arc<Self>, n: usize) -> Result<Vec<Place>, QueueFull> {
        let before = self.count.fetch_add(n, Ordering::AcqRel);
        if before + n > self.most && before > 0 {
            self.count.fetch_sub(n, Ordering::AcqRel);
            return Err(QueueFull { waiting: before, limit: self.most });
        }
        Ok((0..n).map(|_| Place(self.clone())).collect())
    }

    /// As [`Self::enter`], but waits for others to leave.
    async fn enter_in_turn(self: &Arc<Self>, n: usize) -> Vec<Place> {
        loop {
            // Before the look, or a place that is given back in between would not be told.
            let mut freed = std::pin::pin!(self.freed.notified());
            freed.as_mut().enable();
            match self.enter(n) {
                Ok(places) => return places,
                Err(_) => freed.await,
            }
        }
    }
}

/// One request's place in the queue; given back when it is dropped.
struct Place(Arc<Requests>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::AcqRel);
        self.0.freed.notify_waiters();
    }
}

/// Where one answer's events arrive.
pub type Events = mpsc::UnboundedReceiver<Event>;

/// The sending side of [`Events`]. Not bounded: an answer has at most `max_tokens` events, and a slow reader must not stop the
/// batch that others are in.
struct Channel {
    events: mpsc::UnboundedSender<Event>,
    _place: Place,
}

impl Sink for Channel {
    fn send(&mut self, event: Event) {
        // Fails only when the client has left, which the engine sees by itself.
        let _ = self.events.send(event);
    }

    fn is_closed(&self) -> bool {
        self.events.is_closed()
    }
}

/// A request without its sink, which [`Generator::submit`] makes.
pub type Ask = Box<dyn FnOnce(Box<dyn Sink>) -> Request + Send>;

#[derive(Default)]
struct Inbox {
    requests: VecDeque<Request>,
    closed: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    filled: Condvar,
}

/// The engine of one base model; its thread ends when the last handle is dropped.
pub struct Generator {
    shared: Arc<Shared>,
    requests: Arc<Requests>,
    cache_bytes: usize,
    max_length: usize,
}

impl Generator {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(model: Arc<ServedDecoder>, limits: EngineLimits, requests: Arc<Requests>, pool: Arc<Pool>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared { inbox: Mutex::default(), filled: Condvar::new() });
        let worker = shared.clone();
        let engine = Engine::new(model, limits);
        let (cache_bytes, max_length) = (engine.cache_bytes(), engine.max_length());
        std::thread::Builder::new().name("generator".into()).spawn(move || worker.run(engine, &pool))?;
        Ok(Self { shared, requests, cache_bytes, max_length })
    }

    /// Longest sequence, prompt and answer together: less than the model's where the cache has no room for more.
    pub fn max_length(&self) -> usize {
        self.max_length
    }

    /// Bytes of keys and values.
    pub fn cache_bytes(&self) -> usize {
        self.cache_bytes
    }

    /// Queues the requests of one call; each answer has its own events.
    ///
    /// # Errors
    /// [`QueueFull`]; then nothing is queued.
    pub fn submit(&self, asks: Vec<Ask>) -> Result<Vec<Events>, QueueFull> {
        let places = self.requests.enter(asks.len())?;
        Ok(self.queue(asks, places))
    }

    /// Whether there is room for a request at all.
    ///
    /// # Errors
    /// [`QueueFull`].
    pub fn check_room(&self) -> Result<(), QueueFull> {
        let (waiting, limit) = (self.requests.count(), self.requests.most);
        if waiting < limit { Ok(()) } else { Err(QueueFull { waiting, limit }) }
    }

    /// Queues a part of a call that was let in, as soon as there is room: at most [`Self::most_at_once`] requests.
    pub async fn submit_in_turn(&self, asks: Vec<Ask>) -> Vec<Events> {
        let places = self.requests.enter_in_turn(asks.len()).await;
        self.queue(asks, places)
    }

    /// Requests that may wait or run.
    pub fn most_at_once(&self) -> usize {
        self.requests.most.max(1)
    }

    fn queue(&self, asks: Vec<Ask>, places: Vec<Place>) -> Vec<Events> {
        let mut receivers = Vec::with_capacity(asks.len());
        let mut inbox = self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner);
        for (ask, place) in asks.into_iter().zip(places) {
            let (events, receiver) = mpsc::unbounded_channel();
            inbox.requests.push_back(ask(Box::new(Channel { events, _place: place })));
            receivers.push(receiver);
        }
        drop(inbox);
        self.shared.filled.notify_one();
        receivers
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.shared.inbox.lock().unwrap_or_else(PoisonError::into_inner).closed = true;
        self.shared.filled.notify_one();
    }
}

impl Shared {
    fn run(&self, mut engine: Engine, pool: &Pool) {
        loop {
            {
                let mut inbox = self.inbox.lock().unwrap_or_else(PoisonError::into_inner);
                while inbox.requests.is_empty() && engine.is_idle() && !inbox.closed {
                    inbox = self.filled.wait(inbox).unwrap_or_else(PoisonError::into_inner);
                }
                // Who waits for an answer goes on holding it; what nobody waits for ends with the engine.
                if inbox.closed && inbox.requests.is_empty() && engine.is_idle() {
                    return;
                }
                inbox.requests.drain(..).for_each(|request| engine.submit(request));
            }
            // A defect in the maths must not end the thread that all later requests wait for.
            let step = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| pool.install(|| engine.step())));
            match step {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "a step failed; its requests were told"),
                Err(_) => {
                    tracing::error!("a step panicked; its requests were told");
                    engine.abort("the model failed; the server's log says more");
                }
            }
        }
    }
}
