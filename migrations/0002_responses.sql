-- What /v1/responses keeps: an answer with the items that it answered. previous_id points nowhere by design: deleting an answer
-- does not delete those that went on from it.
CREATE TABLE responses (
    id TEXT PRIMARY KEY,
    created_at BIGINT NOT NULL,
    previous_id TEXT,
    -- Whether it is still being made; the body says how it ended.
    unfinished BOOLEAN NOT NULL,
    input TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX responses_by_age ON responses (created_at);
