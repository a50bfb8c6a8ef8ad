-- The first schema. Text in the subset that SQLite and PostgreSQL share: ids are TEXT, times BIGINT milliseconds,
-- flags BOOLEAN, JSON is TEXT. Booleans and foreign keys are real, enumerations are CHECKs.

CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('events', 0);

CREATE TABLE files (
    id TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    bytes BIGINT NOT NULL CHECK (bytes >= 0),
    sha256 TEXT NOT NULL,
    blob_key TEXT NOT NULL,
    summary TEXT NOT NULL,
    status TEXT NOT NULL
);
CREATE INDEX files_by_purpose ON files (purpose, id);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    state TEXT NOT NULL CHECK (state IN
        ('validating_files', 'queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled')),
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    -- What was asked for.
    model TEXT NOT NULL,
    training_file TEXT NOT NULL,
    validation_file TEXT,
    suffix TEXT,
    seed BIGINT NOT NULL,
    task TEXT NOT NULL,
    method TEXT NOT NULL,
    spec TEXT NOT NULL,
    request TEXT NOT NULL,
    metadata TEXT NOT NULL,
    priority BIGINT NOT NULL,
    estimate_bytes BIGINT NOT NULL CHECK (estimate_bytes >= 0),
    -- Why it waits, and what was asked of its worker.
    wait_reason TEXT,
    control TEXT NOT NULL CHECK (control IN ('none', 'pause')),
    -- The lease: an owner or none, an epoch that grows at every change of hands, a beat.
    lease_owner TEXT,
    lease_epoch BIGINT NOT NULL,
    lease_beat BIGINT NOT NULL,
    attempts BIGINT NOT NULL,
    attempt_reasons TEXT NOT NULL,
    -- How far it is.
    phase TEXT,
    step BIGINT NOT NULL,
    total_steps BIGINT,
    epoch DOUBLE PRECISION NOT NULL,
    eta_ms BIGINT,
    trained_tokens BIGINT,
    -- How it ended.
    error TEXT,
    fine_tuned_model TEXT,
    result_files TEXT NOT NULL,
    CHECK (lease_owner IS NULL OR state IN ('validating_files', 'queued', 'running')),
    CHECK (state <> 'running' OR lease_owner IS NOT NULL)
);
CREATE INDEX jobs_by_state ON jobs (state, id);
CREATE INDEX jobs_waiting ON jobs (priority DESC, created_at, id)
    WHERE state IN ('validating_files', 'queued') AND lease_owner IS NULL;
CREATE INDEX jobs_leased ON jobs (lease_owner) WHERE lease_owner IS NOT NULL;
CREATE INDEX jobs_by_training_file ON jobs (training_file);
CREATE INDEX jobs_by_validation_file ON jobs (validation_file) WHERE validation_file IS NOT NULL;

-- The same pairs as jobs.metadata, as rows, so that a list can be filtered without JSON functions.
CREATE TABLE job_metadata (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (job_id, name)
);
CREATE INDEX job_metadata_by_value ON job_metadata (name, value, job_id);

CREATE TABLE idempotency (
    idempotency_key TEXT PRIMARY KEY,
    body_sha256 TEXT NOT NULL,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);
CREATE INDEX idempotency_by_job ON idempotency (job_id);

CREATE TABLE events (
    seq BIGINT PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    level TEXT NOT NULL CHECK (level IN ('info', 'warn', 'error')),
    type TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX events_by_job ON events (job_id, seq);

CREATE TABLE metrics (
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    seq BIGINT NOT NULL,
    step BIGINT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (job_id, seq)
);
CREATE INDEX metrics_by_step ON metrics (job_id, step);

CREATE TABLE job_reports (
    job_id TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    report TEXT NOT NULL,
    predictions_key TEXT
);

CREATE TABLE checkpoints (
    id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    step BIGINT NOT NULL,
    model_name TEXT NOT NULL UNIQUE,
    folder_key TEXT NOT NULL,
    metrics TEXT NOT NULL,
    has_model BOOLEAN NOT NULL,
    has_state BOOLEAN NOT NULL,
    is_best BOOLEAN NOT NULL,
    UNIQUE (job_id, step)
);

-- job_id points nowhere by design: a model outlives its job.
CREATE TABLE models (
    name TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('full', 'adapter')),
    base_name TEXT NOT NULL,
    base_source TEXT NOT NULL,
    base_revision TEXT,
    job_id TEXT,
    task TEXT NOT NULL,
    labels TEXT NOT NULL,
    folder_key TEXT NOT NULL,
    card TEXT NOT NULL,
    max_length BIGINT,
    metrics TEXT NOT NULL
);
CREATE INDEX models_by_base ON models (base_name);
CREATE INDEX models_by_job ON models (job_id);

CREATE TABLE adapters (
    name TEXT PRIMARY KEY,
    base_model TEXT NOT NULL,
    folder_key TEXT,
    source TEXT,
    created_at BIGINT NOT NULL,
    info TEXT NOT NULL
);
CREATE INDEX adapters_by_base ON adapters (base_model);
