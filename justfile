# What one does daily. `just` lists it; every recipe is a plain command that also works without just.

python := env("PYTHON", "python3")

[private]
default:
    @just --list --unsorted

# the release binary: target/release/tunesmith
build:
    cargo build --release

# all tests; arguments filter them by name
test *filter:
    cargo test --workspace {{ filter }}

# format and lints as CI wants them; scripts and Dockerfiles too where their linters are installed
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings
    if command -v shellcheck >/dev/null; then shellcheck .ci/* benches/*.sh; else echo "no shellcheck: scripts not checked"; fi
    if command -v hadolint >/dev/null; then hadolint docker/Dockerfile docker/Dockerfile.cuda; else echo "no hadolint: Dockerfiles not checked"; fi

# exactly what CI runs
ci:
    ./.ci/run

# real weights, real text: pull, train over HTTP, ask (under 5 minutes after the build)
demo:
    cargo run --release -- demo

# AG News, three seeds, beside PyTorch with the same settings (an hour on 2 cores); flags: benches/quality.py --help
quality *flags: build
    PYTHON={{ python }} benches/quality.sh {{ flags }}

# training, generation, embedding and products, ours and the peers' in turn, into benches/results (hours); flags: benches/bench.py --help
bench *flags: build
    cargo build --release --workspace --examples
    {{ python }} benches/bench.py {{ flags }}

# how long answers take beside a training job, with and without its giving up threads; flags: benches/beside.py --help
beside *flags: build
    {{ python }} benches/beside.py {{ flags }}

# the losses of bf16 training beside those of f32 on AG News, one seed; needs a bf16 unit; flags: benches/loss_curves.py --help
loss-curves *flags: build
    {{ python }} benches/loss_curves.py {{ flags }}

# writes tests/fixtures anew; PYTHON needs tests/fixtures/requirements.txt
fixtures:
    {{ python }} tests/fixtures/make.py

# type-checks the cuda feature without a GPU (about 6 minutes, fetches nvcc as Python packages)
check-cuda:
    ./.ci/check-cuda

# type-checks for 64-bit ARM Linux; C parts need aarch64-linux-gnu-gcc
check-aarch64:
    ./.ci/check-aarch64

# the kernels' tests under valgrind (about 10 minutes)
check-memory:
    ./.ci/check-memory

# licences, bans and sources of all dependencies; needs cargo-deny
deny:
    cargo deny check licenses bans sources

# where a training step spends its time, needs Linux's perf; flags go to the example train_encoder
profile *flags:
    CARGO_PROFILE_RELEASE_DEBUG=line-tables-only CARGO_PROFILE_RELEASE_STRIP=none cargo build --release --target-dir target/profile -p tunesmith-ml --example train_encoder
    perf record --call-graph dwarf,16384 -F 199 -o target/profile/perf.data -- target/profile/release/examples/train_encoder --model "$(cargo run --release -q -- pull all-minilm-l6-v2 | sed -n 's/^all-minilm-l6-v2: //p')" --seconds 10 {{ flags }}
    perf report -i target/profile/perf.data --no-children --percent-limit 1 --stdio | head -80
