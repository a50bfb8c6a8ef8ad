//! Generation speed of the engine: JSON lines as the peers' scripts print them.
//!
//! `generate --model FOLDER_OR_GGUF [--prompt 512] [--new 128] [--threads 2] [--seconds 15] [--only prefill,decode,…]`
//!
//! `prefill` is one prompt, `decode` one sequence after a prompt of 16 tokens, `decode 8` and `decode 32` so many at once, `decode 32
//! adapters` each of them with an adapter of its own (rank 8 on query and value); `first token` is the time from a request to its first
//! token alone, and while 8 others decode. Prompts are never the same, so that none is found computed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use serde_json::json;
use tunesmith_ml::infer::{Engine, EngineLimits, Event, Request, Sampling, ServedAdapter, ServedDecoder, Sink, cache_bytes_of};
use tunesmith_ml::models::{Stream, normal, write_safetensors};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Prompts of `decode` and `first token`.
const SHORT: usize = 16;
/// As the server sets it.
const PREFILL_TOKENS: usize = 256;

struct Flags {
    model: PathBuf,
    prompt: usize,
    new: usize,
    threads: usize,
    seconds: f64,
    only: Option<String>,
}

fn flags() -> Result<Flags, Failure> {
    let threads = std::thread::available_parallelism()?.get();
    let mut f = Flags { model: PathBuf::new(), prompt: 512, new: 128, threads, seconds: 15.0, only: None };
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let value = args.next().ok_or(format!("{name} needs a value"))?;
        match name.as_str() {
            "--model" => f.model = value.into(),
            "--prompt" => f.prompt = value.parse()?,
            "--new" => f.new = value.parse()?,
            "--threads" => f.threads = value.parse()?,
            "--seconds" => f.seconds = value.parse()?,
            "--only" => f.only = Some(value),
            _ => return Err(format!("unknown flag {name}").into()),
        }
    }
    Ok(f)
}

/// Sends word of the first token and of the end.
struct Told {
    started: Instant,
    first: Option<Sender<Duration>>,
}

impl Sink for Told {
    fn send(&mut self, event: Event) {
        if matches!(event, Event::Token { .. })
            && let Some(first) = self.first.take()
        {
            let _ = first.send(self.started.elapsed());
        }
    }

    fn is_closed(&self) -> bool {
        false
    }
}

struct Bench {
    model: Arc<ServedDecoder>,
    random: Stream,
    flags: Flags,
    /// Of the requests, in turn.
    adapters: Vec<Arc<ServedAdapter>>,
    asked: usize,
}

impl Bench {
    /// An engine whose cache has room for so many sequences of so many tokens: with more it would keep ended ones for those who ask the
    /// same again, and the peak of memory would count them.
    fn engine(&self, sequences: usize, tokens: usize) -> Engine {
        let cache_bytes = sequences * cache_bytes_of(&self.model, tokens);
        let limits = EngineLimits { cache_bytes, max_sequences: sequences, prefill_tokens: PREFILL_TOKENS };
        Engine::new(self.model.clone(), limits)
    }

    fn request(&mut self, prompt: usize, new: usize, first: Option<Sender<Duration>>) -> Request {
        let vocabulary = self.model.config().vocab_size;
        self.asked += 1;
        Request {
            prompt: (0..prompt).map(|_| self.random.below(vocabulary) as u32).collect(),
            adapter: self.adapters.get(self.asked % self.adapters.len().max(1)).cloned(),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            max_tokens: new,
            stop: Vec::new(),
            stop_tokens: BTreeSet::new(),
            logprobs: None,
            prompt_logprobs: None,
            show_special: true,
            constraint: None,
            sink: Box::new(Told { started: Instant::now(), first }),
        }
    }

    /// Tokens per second of `sequences` prompts with `new` tokens each, the fastest run first.
    fn rates(&mut self, sequences: usize, prompt: usize, new: usize, counted: usize) -> Result<Vec<f64>, Failure> {
        let mut engine = self.engine(sequences, prompt + new);
        let (mut rates, started) = (Vec::new(), Instant::now());
        // The first two runs warm up.
        while rates.len() < 5 || started.elapsed().as_secs_f64() < self.flags.seconds {
            let from = Instant::now();
            for _ in 0..sequences {
                let request = self.request(prompt, new, None);
                engine.submit(request);
            }
            while !engine.is_idle() {
                engine.step()?;
            }
            rates.push((sequences * counted) as f64 / from.elapsed().as_secs_f64());
        }
        rates.drain(..2);
        rates.sort_by(|a, b| b.total_cmp(a));
        Ok(rates)
    }

    /// Milliseconds to the first token of short prompts that come while `others` sequences decode, the shortest first.
    fn first_tokens(&mut self, others: usize) -> Result<Vec<f64>, Failure> {
        let seconds = self.flags.seconds;
        let long = self.model.max_length() - SHORT;
        let mut engine = self.engine(others + 1, self.model.max_length());
        let (send, requests) = channel::<Request>();
        (0..others).for_each(|_| engine.submit(self.request(SHORT, long, None)));
        std::thread::scope(|scope| {
            let asking = scope.spawn(move || {
                let (mut times, started) = (Vec::new(), Instant::now());
                while times.len() < 5 || started.elapsed().as_secs_f64() < seconds {
                    let (first, told) = channel();
                    // Requests come at no particular moment of a step.
                    std::thread::sleep(Duration::from_micros(self.random.below(40_000) as u64));
                    let request = self.request(SHORT, 1, Some(first));
                    send.send(request).map_err(|_| "the engine has ended")?;
                    times.push(told.recv()?.as_secs_f64() * 1e3);
                }
                times.drain(..2);
                times.sort_by(f64::total_cmp);
                Ok::<_, Failure>(times)
            });
            serve(&mut engine, &requests)?;
            asking.join().map_err(|_| "the asking thread panicked")?
        })
    }
}

/// An adapter of rank 8 on the queries and values of every block, its numbers drawn, as PEFT would have saved it.
fn drawn_adapter(model: &Arc<ServedDecoder>) -> Result<ServedAdapter, Failure> {
    let folder = tempfile::tempdir()?;
    let decoder = model.decoder();
    let mut tensors = Vec::new();
    for linear in decoder.linears().filter(|l| l.name().ends_with("q_proj") || l.name().ends_with("v_proj")) {
        let (out, input) = linear.shape();
        for (part, shape) in [("lora_A", [8, input]), ("lora_B", [out, 8])] {
            let name = format!("base_model.model.{}.{part}.weight", linear.name());
            tensors.push((name.clone(), normal(&shape, 0.02, 0, &name, &candle_core::Device::Cpu)?));
        }
    }
    write_safetensors(&folder.path().join("adapter_model.safetensors"), &tensors)?;
    let config = json!({"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]});
    std::fs::write(folder.path().join("adapter_config.json"), config.to_string())?;
    Ok(ServedAdapter::load(model.clone(), folder.path())?)
}

/// Runs the engine as the server does, until nobody can ask any more.
fn serve(engine: &mut Engine, requests: &Receiver<Request>) -> Result<(), Failure> {
    loop {
        if engine.is_idle() {
            match requests.recv() {
                Ok(request) => engine.submit(request),
                Err(_) => return Ok(()),
            }
        }
        loop {
            match requests.try_recv() {
                Ok(request) => engine.submit(request),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => return Ok(()),
            }
        }
        engine.step()?;
    }
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find(|l| l.starts_with("VmHWM:")).and_then(|l| l.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

fn report(f: &Flags, name: &str, unit: &str, values: &[f64]) {
    let rounded = |x: f64| (x * 100.0).round() / 100.0;
    let model = f.model.file_name().unwrap_or(f.model.as_os_str()).to_string_lossy();
    println!(
        "{}",
        json!({"name": name, "unit": unit, "best": rounded(values[0]), "median": rounded(values[values.len() / 2]), "peak_rss_mib": peak_mib(),
            "model": model, "threads": f.threads})
    );
}

fn measure(flags: Flags) -> Result<(), Failure> {
    let model = Arc::new(ServedDecoder::load(Path::new(&flags.model))?);
    let only: Option<Vec<String>> = flags.only.as_ref().map(|names| names.split(',').map(str::to_owned).collect());
    let wanted = |name: &str| only.as_ref().is_none_or(|names| names.iter().any(|n| n == name));
    let (prompt, new) = (flags.prompt, flags.new);
    let mut bench = Bench { model, random: Stream::new(0, "bench"), flags, adapters: Vec::new(), asked: 0 };
    if wanted("prefill") {
        let rates = bench.rates(1, prompt, 1, prompt)?;
        report(&bench.flags, "prefill", "tokens/s", &rates);
    }
    for (sequences, name) in [(1, "decode"), (8, "decode 8"), (32, "decode 32")] {
        if wanted(name) {
            // The prompt gives one token itself; the peer runs one token at a time `new` times.
            let rates = bench.rates(sequences, SHORT, new + 1, new)?;
            report(&bench.flags, name, "tokens/s", &rates);
        }
    }
    if wanted("decode 32 adapters") {
        bench.adapters = (0..32).map(|_| drawn_adapter(&bench.model).map(Arc::new)).collect::<Result<_, _>>()?;
        let rates = bench.rates(32, SHORT, new + 1, new)?;
        report(&bench.flags, "decode 32 adapters", "tokens/s", &rates);
        bench.adapters.clear();
    }
    for (others, name) in [(0, "first token"), (8, "first token beside 8")] {
        if wanted(name) {
            let times = bench.first_tokens(others)?;
            report(&bench.flags, name, "ms", &times);
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let flags = flags()?;
    let pool = tunesmith_ops::threads::build_pool(flags.threads)?;
    pool.install(|| measure(flags))
}
